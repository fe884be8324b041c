package ratelimit

import (
	"math"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// generationSize is how many addresses a generation of buckets holds: two full ones take about 25 MB.
const generationSize = 1 << 16

// Handshakes is the rate of handshakes of each address. It's safe for concurrent use. A nil Handshakes limits nothing.
//
// The addresses are chosen by strangers, and over IPv6 one stranger has plenty of them, so memory is bounded by forgetting:
// buckets live in two generations. A bucket that is used moves to the younger one, and the older one is dropped as a whole
// when the younger has grown old or full. Old means as old as an empty bucket needs to fill: what is dropped then is full,
// like the new one that would take its place, so nothing is lost. Full means that over 65,536 addresses came within that
// time. A bucket dropped then may have been empty, so its address gets another burst, but only after that many others
// came: who has so many addresses isn't held by a rate for each of them, and MAX_CONNECTIONS is what bounds him.
type Handshakes struct {
	perSecond float64
	burst     int
	fill      time.Duration // an empty bucket is full after it

	mu             sync.Mutex // guards the following fields
	young, old     map[netip.Prefix]*rate.Limiter
	youngCreatedAt time.Time
}

// NewHandshakes returns the rate of handshakes of each address, or nil when it's off.
func NewHandshakes(c Config) *Handshakes {
	if c.Handshakes <= 0 {
		return nil
	}
	burst := capacity(c.Handshakes, int64(c.HandshakesBurst))
	return &Handshakes{perSecond: c.Handshakes, burst: burst, fill: seconds(float64(burst) / c.Handshakes)}
}

// Allow takes one handshake of the address and reports true if it may go on; otherwise it takes nothing and says after
// which time the next one may. The zero Prefix stands for an address that isn't known: there is nothing to count it by,
// so it isn't limited.
func (h *Handshakes) Allow(now time.Time, address netip.Prefix) (ok bool, retryAfter time.Duration) {
	if h == nil || !address.IsValid() {
		return true, 0
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	bucket := h.bucket(now, address)
	if bucket.AllowN(now, 1) {
		return true, 0
	}
	missing := 1 - bucket.TokensAt(now)
	return false, seconds(missing / h.perSecond)
}

// bucket returns the bucket of the address, which is then in the younger generation.
func (h *Handshakes) bucket(now time.Time, address netip.Prefix) *rate.Limiter {
	if h.young == nil || len(h.young) >= generationSize || now.Sub(h.youngCreatedAt) > h.fill {
		h.old, h.young, h.youngCreatedAt = h.young, make(map[netip.Prefix]*rate.Limiter), now
	}
	if bucket, ok := h.young[address]; ok {
		return bucket
	}
	bucket, ok := h.old[address]
	if !ok {
		bucket = rate.NewLimiter(rate.Limit(h.perSecond), h.burst)
	}
	h.young[address] = bucket
	return bucket
}

// seconds returns s seconds, or the longest duration if they are more.
func seconds(s float64) time.Duration {
	if s >= time.Duration(math.MaxInt64).Seconds() {
		return math.MaxInt64
	}
	return time.Duration(s * float64(time.Second))
}
