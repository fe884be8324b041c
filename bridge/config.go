package bridge

import (
	"net/netip"
	"time"
)

// Config is what the client side and the push side may do. The tags are the one declaration of these settings: cmd reads
// them, prints them and documents them. An int64 is a size in bytes.
type Config struct {
	Paths                    []Path         `env:"PATHS" usage:"paths that accept an upgrade (/chat, /ws/*); default: all when the backend's URL has a path, /ws and /ws/* when it has none"`
	AllowedOrigins           []Origin       `env:"ALLOWED_ORIGINS" usage:"origins that may connect (https://*.example.org, or * for all); default: the host the client asked for"`
	TrustedProxies           []netip.Prefix `env:"TRUSTED_PROXIES" envDefault:"127.0.0.0/8,::1/128" usage:"networks whose X-Forwarded-* headers are believed"`
	MaxConnections           int            `env:"MAX_CONNECTIONS" min:"1" usage:"connections at once (default: what the descriptor limit allows)"`
	MaxConnectionsPerAddress int            `env:"MAX_CONNECTIONS_PER_ADDRESS" envDefault:"0" min:"0" usage:"connections at once from one address (IPv6: one /64); 0: off"`
	HandshakeTimeout         time.Duration  `env:"HANDSHAKE_TIMEOUT" envDefault:"10s" min:"1ms" usage:"how long a handshake may wait for the backend"`
	MaxMessage               int64          `env:"MAX_MESSAGE" envDefault:"64KiB" min:"1" usage:"largest message of a client, as decompressed; over it 1009"`
	Compression              string         `env:"COMPRESSION" envDefault:"off" oneof:"on,off" usage:"permessage-deflate: on or off"`
	PingInterval             time.Duration  `env:"PING_INTERVAL" envDefault:"25s" min:"1ms" usage:"time between pings"`
	PongTimeout              time.Duration  `env:"PONG_TIMEOUT" envDefault:"20s" min:"1ms" usage:"silence after a ping that ends a connection (3008)"`
	IdleTimeout              time.Duration  `env:"IDLE_TIMEOUT" envDefault:"0" min:"0" usage:"time without a message either way that ends a connection (1000); 0: off"`
	MaxAge                   time.Duration  `env:"MAX_AGE" envDefault:"0" min:"0" usage:"age that ends a connection (1001), less a random tenth; 0: off"`
	SendBuffer               int64          `env:"SEND_BUFFER" envDefault:"256KiB" min:"1" usage:"bytes that may wait for a slow client"`
	SlowClient               SlowPolicy     `env:"SLOW_CLIENT" envDefault:"close" oneof:"close,drop-oldest" usage:"what a client over SEND_BUFFER gets: close (1008) or drop-oldest"`
	WriteTimeout             time.Duration  `env:"WRITE_TIMEOUT" envDefault:"10s" min:"1ms" usage:"how long a write to a client may make no progress"`
	GoodbyeFor               time.Duration  `env:"BACKEND_GOODBYE_FOR" envDefault:"1h" min:"1ms" usage:"how long a disconnect event is posted again until the backend takes it"`
	GoodbyeMax               int            `env:"BACKEND_GOODBYE_MAX" envDefault:"100000" min:"1" usage:"disconnect events that may wait for the backend; what comes on top is lost, logged and counted"`
	GoodbyeBytes             int64          `env:"BACKEND_GOODBYE_BYTES" envDefault:"64MiB" min:"1" usage:"memory that they may take"`
	StateDir                 string         `env:"STATE_DIR" usage:"directory for disconnect events that are left when a drain ends: they are posted at the next start (default: $STATE_DIRECTORY, which systemd sets; without one they are lost)"`
	PushToken                string         `env:"PUSH_TOKEN" secret:"true" usage:"token that push requests carry; required unless PUSH_LISTEN is loopback or a unix socket"`
	PushMaxBody              int64          `env:"PUSH_MAX_BODY" envDefault:"1MiB" min:"1" usage:"largest body of a push"`
}

// SlowPolicy says what happens to a client whose queue is full.
type SlowPolicy string

// The policies of WSBRIDGE_SLOW_CLIENT.
const (
	SlowClose      SlowPolicy = "close"
	SlowDropOldest SlowPolicy = "drop-oldest"
)
