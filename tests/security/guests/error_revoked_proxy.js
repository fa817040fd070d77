// expect: failed
function main() { const { proxy, revoke } = Proxy.revocable({}, {}); revoke(); throw proxy; }
