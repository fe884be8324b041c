package upstream

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Secrets sign the events, as Standard Webhooks has it: each makes a signature of its own, so that a new secret can be added before
// the old one goes.
type Secrets [][]byte

// The size of a secret, in bytes, as Standard Webhooks wants it.
const (
	minSecret = 24
	maxSecret = 64
)

// UnmarshalText parses a comma-separated list of secrets: whsec_ and base64 of 24 to 64 bytes. Its errors name no secret.
func (s *Secrets) UnmarshalText(text []byte) error {
	var parsed Secrets
	for item := range strings.SplitSeq(string(text), ",") {
		encoded, ok := strings.CutPrefix(strings.TrimSpace(item), "whsec_")
		if !ok {
			return errors.New("a secret is whsec_ followed by base64, such as `echo whsec_$(openssl rand -base64 32)` makes")
		}
		secret, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return errors.New("what follows whsec_ is not base64")
		}
		if len(secret) < minSecret || len(secret) > maxSecret {
			return fmt.Errorf("a secret of %d bytes: use %d to %d", len(secret), minSecret, maxSecret)
		}
		parsed = append(parsed, secret)
	}
	*s = parsed
	return nil
}

// String hides the secrets.
func (s Secrets) String() string { return fmt.Sprintf("(%d secrets)", len(s)) }

// sign returns the timestamp and the signatures of one attempt.
func (s Secrets) sign(id string, at time.Time, body []byte) (timestamp, signatures string) {
	timestamp = strconv.FormatInt(at.Unix(), 10)
	var list strings.Builder
	for i, secret := range s {
		mac := hmac.New(sha256.New, secret)
		for _, part := range [...]string{id, ".", timestamp, "."} {
			mac.Write([]byte(part))
		}
		mac.Write(body)
		if i > 0 {
			list.WriteByte(' ')
		}
		list.WriteString("v1,")
		list.WriteString(base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	return timestamp, list.String()
}
