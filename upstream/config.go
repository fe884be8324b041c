package upstream

import (
	"time"
)

// Config says where the backend is and how it is spoken to. The tags are the one declaration of these settings: cmd
// reads them, prints them and documents them. An int64 is a size in bytes.
type Config struct {
	URL            URL           `env:"URL" required:"true" usage:"where events are POSTed to: a URL without a path keeps the client's path, one with a path is used as it stands; http://unix:/run/app.sock:/path reaches a unix socket"`
	Host           string        `env:"HOST" usage:"Host header of the POSTs (default: the client's)"`
	Secret         Secrets       `env:"SECRET" secret:"true" usage:"secrets that sign the events by Standard Webhooks: whsec_ and base64 of 24 to 64 bytes; several, for rotation, have commas between them"`
	TextType       string        `env:"TEXT_TYPE" envDefault:"text/plain; charset=utf-8" usage:"Content-Type of a text message"`
	ForwardHeaders []string      `env:"FORWARD_HEADERS" envDefault:"Cookie,Authorization,Origin,User-Agent,Accept-Language" usage:"headers of the handshake that go with every event"`
	Events         Types         `env:"EVENTS" envDefault:"connect,message,disconnect" usage:"the events the backend wants"`
	Timeout        time.Duration `env:"TIMEOUT" envDefault:"30s" min:"1ms" usage:"how long one POST may take, its answer included"`
	Retry          Retry         `env:"RETRY" envDefault:"safe" oneof:"safe,always,never" usage:"which events are sent again: safe (those certainly not taken), always (those that may have been taken as well: the backend keeps ce-ids) or never"`
	RetryFor       time.Duration `env:"RETRY_FOR" envDefault:"2m" min:"1ms" usage:"how long a message is held while the backend is away; then 1013"`
	MaxConcurrent  int           `env:"MAX_CONCURRENT" envDefault:"16" min:"1" usage:"POSTs under way at once; keep it below the application's workers"`
	MaxAnswer      int64         `env:"MAX_ANSWER" envDefault:"1MiB" min:"1" usage:"largest answer of the backend"`
	CA             string        `env:"CA" usage:"file with the PEM certificates that sign an https backend's (default: the system's)"`
	TLSName        string        `env:"TLS_NAME" usage:"name expected in an https backend's certificate (default: the URL's host)"`
}
