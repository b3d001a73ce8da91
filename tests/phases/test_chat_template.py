"""A chat template is a program from outside: whatever it does, it ends soon and makes no more than a prompt holds."""

import resource
import time

import pytest

from phases import template_limits
from phases.chat_template import ChatTemplate
from phases.template_limits import TemplateTooCostly

pytestmark = pytest.mark.slow

CHAT = [{"role": "user", "content": "hi"}]
MEMORY = 600 * 2**10  # KiB that one of them may take at most

ENDLESS = {
    "loops that print nothing": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a block of loops": "{% set x %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    "{% endset %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "callers": "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call f() %}" * 16 + "{% for a in range(99) %}{% endfor %}" + "{% endcall %}" * 16,
    "a recursive loop": "{% for a in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 60 else '' }}{% endfor %}",
    "tests in a filter": "{% set l = range(9999)|list %}{{ range(99999)|select('in', l)|list|length }}",
    "filters in a filter": "{{ range(99999)|map('string')|map('upper')|map('list')|map('join', '')|list|length }}",
}  # fmt: skip
LARGE = {
    "printing": "{% for a in range(99999) %}{% for b in range(99999) %}" + "a" * 400 + "{% endfor %}{% endfor %}",
    "doubling": "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "adding": "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "adding lists": "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "times": "{{ 'a' * 10**10 }}",
    "times a list": "{{ ['a'] * 10**9 }}",
    "power": "{% set x = 99999 %}{{ x ** x ** 2 }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "a wide field": "{{ '{:1000000000}'.format(1) }}",
    "a width of its own": "{{ '{:{}}'.format(1, 10**9) }}",
    "a wide percent": "{{ '%1000000000d' % 1 }}",
    "a star": "{{ '%*d' % (10**9, 1) }}",
    "a wide filter": "{{ '%01000000000d'|format(1) }}",
    "many fields": "{{ ('{0}' * 10000).format('a' * 100000) }}",
    "many percents": "{{ ('%(a)s' * 10000) % {'a': 'a' * 100000} }}",
    "join": "{{ ('a' * 10000).join(range(80000)|map('string')) }}",
    "join, the filter": "{{ range(80000)|join('a' * 100000) }}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace, the filter": "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
    "a filtered block": "{% filter replace('a', 'b' * 10000) %}{{ 'a' * 10000 }}{% endfilter %}",
    "a filtered set": "{% set x | replace('a', 'b' * 10000) %}{{ 'a' * 10000 }}{% endset %}",
    "indent": "{{ ('a\n' * 100000)|indent(100000) }}",
    "tojson": "{{ [[[1]]]|tojson(indent=10**9) }}",
    "sum": "{% set l = range(80000)|list %}{{ [l, l, l]|sum(start=[])|length }}",
    "round": "{{ 1|round(10**9) }}",
    "ten times ten lists": "{% set n = namespace(x=['a']) %}{% for i in range(50) %}{% set n.x = [n.x, n.x, n.x] %}"
    "{% endfor %}{{ n.x }}",
    "a dict of it": "{{ dict.fromkeys(range(80000), 'a' * 100000) }}",
    "a date": "{{ strftime_now('%c' * 1000000) }}",
    "many strings": "".join(f"{{% set x{i} = 'a' * 4000000 %}}" for i in range(5000)),
    "many operands": "{{ " + "~".join(["('a' * 100000)"] * 9000) + " }}",
    "slices": "{% macro f(x) %}{% set a = x[1:] %}{% set b = x[2:] %}{{ f(a) }}{% endmacro %}{{ f('a' * 4000000) }}",
    "its own text": "{# " + "a" * 300_000 + " #}",
    "a range of equal hashes": "{{ range(0, 10**23, 2305843009213693951)|unique|list|length }}",
}  # fmt: skip
REFUSED = {
    "bytes": "{{ (5).to_bytes(10**9, 'big') }}",
    "encode": "{{ 'a'.encode() }}",
    "nonsense": "{{ lipsum(n=100000) }}",
    "itself": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "a macro without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "blocks": "{% for x in y %}" * 5000,
    "attributes": "{{ a" + ".a" * 50_000 + " }}",
    "braces": "{" * 250_000,
    "classes": "{{ ''.__class__.__mro__ }}",
    "other files": "{% include 'x' %}",
    "changing the messages": "{{ messages.append(1) }}",
    "a hidden name": "{% set n = namespace(a=1) %}{% set n._b = 2 %}",
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "SECONDS", 0.3)


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_does_not_end_is_ended(name: str) -> None:
    before = time.thread_time()
    with pytest.raises(TemplateTooCostly, match=r"takes more than 0\.3 seconds"):
        ChatTemplate(ENDLESS[name]).render(CHAT, {})
    assert time.thread_time() - before < 2


@pytest.mark.parametrize("name", LARGE)
def test_a_template_that_grows_is_ended_before_it_has_grown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "SECONDS", 30.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TemplateTooCostly, match=r"characters|great width|too wide"):
        ChatTemplate(LARGE[name]).render(CHAT, {})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


@pytest.mark.parametrize("name", REFUSED)
def test_other_attacks_are_refused(name: str) -> None:
    with pytest.raises(Exception) as error:  # noqa: PT011 - jinja2's, or what Python raised
        ChatTemplate(REFUSED[name]).render(CHAT, {})
    assert isinstance(error.value, Exception)


def test_a_long_chat_is_no_attack() -> None:
    template = ChatTemplate(
        "{% set n = namespace(text='') %}{% for m in messages %}{% set n.text = n.text + m.role + ': ' + m.content %}"
        "{% endfor %}{{ n.text }}{% for m in messages[1:] %}{{ '<' + m.role + '>' ~ m.content | trim }}{% endfor %}"
    )
    long = [{"role": "user", "content": "word " * 2000}] * 300  # three million characters
    assert len(template.render(long, {})) > 5e6


def test_threads_render_apart() -> None:
    from concurrent.futures import ThreadPoolExecutor

    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    chats = [[{"role": "user", "content": str(number)}] * 50 for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        rendered = list(pool.map(lambda chat: template.render(chat, {}), chats))
    assert rendered == [str(number) * 50 for number in range(40)]
