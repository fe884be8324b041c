package ratelimit

// Policy says what happens to a client that is over its rate.
type Policy string

// The policies of WSBRIDGE_RATE_POLICY.
const (
	// Wait stops reading until there is room: TCP slows the client and nothing is lost.
	Wait Policy = "wait"
	// End closes the connection.
	End Policy = "close"
)

// Config is the rates of one client; 0 turns a rate off. The tags are the one declaration of these settings. An int64 is
// a size in bytes.
type Config struct {
	Messages        float64 `env:"MESSAGES" envDefault:"0" min:"0" usage:"messages a second for each connection"`
	MessagesBurst   int     `env:"MESSAGES_BURST" min:"1" usage:"messages that may come at once (default: twice the rate)"`
	Bytes           int64   `env:"BYTES" envDefault:"0" min:"0" usage:"bytes of messages a second for each connection"`
	BytesBurst      int64   `env:"BYTES_BURST" min:"1" usage:"bytes of messages that may come at once (default: twice the rate)"`
	Handshakes      float64 `env:"HANDSHAKES" envDefault:"0" min:"0" usage:"handshakes a second for each address"`
	HandshakesBurst int     `env:"HANDSHAKES_BURST" min:"1" usage:"handshakes that may come at once (default: twice the rate)"`
	Policy          Policy  `env:"POLICY" envDefault:"wait" oneof:"wait,close" usage:"what a connection over its rate gets: wait (it is not read until there is room) or close (1008)"`
}
