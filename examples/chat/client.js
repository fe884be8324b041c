// connect keeps a WebSocket open. tell.state is called with 'connecting', 'open', 'waiting' or 'closed', the last two with the close code and its reason;
// tell.message with text or an ArrayBuffer. Nothing is sent twice: send says whether it was sent, and what is to be said again is the page's to know.
function connect(url, tell, { protocols = [], first = 1000, longest = 60000 } = {}) {
  const comeBack = [1001, 1006, 1011, 1012, 1013, 3008]
  let socket, timer, failures = 0
  function open() {
    let since = Infinity
    tell.state('connecting')
    socket = new WebSocket(url, protocols)
    socket.binaryType = 'arraybuffer'
    socket.onopen = () => { since = performance.now(); tell.state('open') }
    socket.onmessage = event => tell.message(event.data)
    socket.onclose = ({ code, reason }) => {
      if (!comeBack.includes(code)) return tell.state('closed', code, reason)
      if (performance.now() - since > 10000) failures = 0 // it held: this is a new trouble, not the last one
      timer = setTimeout(open, Math.random() * Math.min(longest, first * 2 ** failures++))
      tell.state('waiting', code, reason)
    }
  }
  open()
  return {
    send: data => socket.readyState === WebSocket.OPEN && (socket.send(data), true),
    close() { clearTimeout(timer); socket.onclose = null; socket.close(1000); tell.state('closed', 1000, '') },
  }
}
