"""The interactive debugger: runs that are stepped, looked into, rewound and forked, in lines or on a full screen."""
