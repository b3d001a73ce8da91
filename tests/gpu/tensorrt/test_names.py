"""Every name that the source takes from TensorRT exists in the flavours that are installed: a scan of the source."""

import ast
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from full_tensorrt import full_tensorrt

import gpu.tensorrt
from gpu.tensorrt.available import FLAVOURS

SOURCES = sorted(Path(gpu.tensorrt.__file__).parent.glob("*.py"))
# Names that stand where the flavours are told apart.
ONLY_RTX = {"ComputeCapability", "DynamicShapesKernelSpecializationStrategy"}
ONLY_RTX_MEMBERS = {
    "num_compute_capabilities", "set_compute_capability", "dynamic_shapes_kernel_specialization_strategy",
}  # fmt: skip
CLASSES = {  # what the source calls an object, and what it then is
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig",
    "profile": "IOptimizationProfile", "layer": "ILayer", "tensor": "ITensor",
    "runtime_config": "IRuntimeConfig",
}  # fmt: skip
OF_FILES = {  # what it calls so in some files alone; `_engine` is that of `self._engine`
    "execution.py": {
        "engine": "ICudaEngine", "_engine": "ICudaEngine", "_runtime": "Runtime", "context": "IExecutionContext",
        "_context": "IExecutionContext",
    },
    "library.py": {"engine": "ICudaEngine"},
    "network.py": {"error": "ParserError"},
}  # fmt: skip


def names(tree: ast.AST) -> Iterator[str]:
    """Give the dotted names that begin with `trt.`, without it."""
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            parts, at = [], node
            while isinstance(at, ast.Attribute):
                parts.append(at.attr)
                at = at.value
            if isinstance(at, ast.Name) and at.id == "trt":
                yield ".".join(reversed(parts))


def members(tree: ast.AST, file: str) -> Iterator[tuple[str, str]]:
    """Give (class, member) for what is asked of objects by their usual names, or those that they have in a file."""
    classes = CLASSES | OF_FILES.get(file, {})
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            called = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if called in classes:
                yield classes[called], node.attr


def resolve(module: ModuleType, name: str) -> object:
    """Follow a dotted name; after `__members__` and `__init__` come no names of TensorRT."""
    found: object = module
    for part in name.split("."):
        found = getattr(found, part)
        if part.startswith("__"):
            break
    return found


@pytest.fixture(scope="module", params=FLAVOURS)
def flavour(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    if request.param == "tensorrt":
        found = full_tensorrt(tmp_path_factory.mktemp("tensorrt"))
        return found if isinstance(found, ModuleType) else pytest.skip(found)
    return (
        import_module(request.param) if find_spec(request.param) else pytest.skip(f"{request.param} is not installed")
    )


def test_the_scan_finds_names() -> None:
    found = {name for path in SOURCES for name in names(ast.parse(path.read_text()))}
    assert {"Builder", "OnnxParser", "LayerType.KV_CACHE_UPDATE", "MemoryPoolType.WORKSPACE"} <= found
    asked = {pair for path in SOURCES for pair in members(ast.parse(path.read_text()), path.name)}
    assert {
        ("IBuilderConfig", "max_aux_streams"), ("Builder", "build_serialized_network"),
        ("Runtime", "deserialize_cuda_engine"), ("ICudaEngine", "get_aliased_input_tensor"),
        ("ICudaEngine", "create_runtime_config"), ("IExecutionContext", "set_optimization_profile_async"),
        ("IExecutionContext", "execute_async_v3"),
    } <= asked  # fmt: skip
    assert {"TensorIOMode.INPUT", "ExecutionContextAllocationStrategy.USER_MANAGED"} <= found
    with pytest.raises(AttributeError):
        resolve(ast, "NoSuchName")


def test_every_name_exists(flavour: ModuleType) -> None:
    full = not hasattr(flavour, "ComputeCapability")
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        apart = full and path.name == "library.py"  # which tells the flavours apart
        for name in names(tree):
            if not (apart and name.split(".")[0] in ONLY_RTX):
                resolve(flavour, name)
        for class_name, member in members(tree, path.name):
            if not (apart and member in ONLY_RTX_MEMBERS):
                assert hasattr(getattr(flavour, class_name), member), f"{path.name}: {class_name}.{member}"


def test_no_module_imports_a_flavour_by_its_name() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in imported} & set(FLAVOURS), path.name
