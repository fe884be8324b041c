package bridge

import (
	"crypto/sha1"
	"encoding/base64"
	"net/http"
	"strconv"
	"sync"
)

// scraps has buffers for what is written while a connection opens, and then not needed any more: of each it would be a sixth of the garbage.
var scraps = sync.Pool{New: func() any {
	p := make([]byte, 0, 1<<10)
	return &p
}}

// switching appends the answer by which a connection becomes a WebSocket (RFC 6455, 4.2.2), to a handshake with that Sec-WebSocket-Key. The header is what it has beside; where
// messages may be compressed the client is told how far, and of the window that it has asked us to keep to, which is 0 if it has not (RFC 7692, 7.1).
func switching(p []byte, key string, header http.Header, compressed bool, window int) []byte {
	digest := sha1.Sum(append(append(make([]byte, 0, 64), key...), "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"...))
	p = append(p, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "...)
	p = append(base64.StdEncoding.AppendEncode(p, digest[:]), "\r\n"...)
	if compressed {
		p = append(p, "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover"...)
		if window > 0 {
			p = strconv.AppendInt(append(p, "; server_max_window_bits="...), int64(window), 10)
		}
		p = append(p, "\r\n"...)
	}
	for name, values := range header {
		for _, value := range values {
			p = append(append(p, name...), ": "...)
			for _, b := range []byte(value) {
				if b < ' ' {
					b = ' ' // a line break, say, would begin another field
				}
				p = append(p, b)
			}
			p = append(p, "\r\n"...)
		}
	}
	return append(p, "\r\n"...)
}
