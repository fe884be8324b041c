package bridge

import (
	"crypto/sha256"
	"net/http"
	"sync"
	"time"
)

const (
	// repeatFor is how long the verdict on a message with an Idempotency-Key is remembered, unless more than maxRepeats come meanwhile.
	repeatFor  = 10 * time.Minute
	maxRepeats = 10_000
	// maxRepeatKey is the longest key, in bytes.
	maxRepeatKey = 255
)

// repeats remembers the verdicts on messages that were sent with an Idempotency-Key.
type repeats struct {
	mu     sync.Mutex // guards the following
	known  map[string]*remembered
	oldest []*remembered
}

// remembered is one of them.
type remembered struct {
	key     string
	print   [sha256.Size]byte // of the message
	at      time.Time
	done    chan struct{} // closed when there is a verdict
	verdict verdict
}

// once sends, or returns the verdict on what was sent under this key before, for which it waits where need be. It is not the same where
// that was another message.
func (p *repeats) once(key string, print [sha256.Size]byte, send func() verdict) (v verdict, same bool) {
	now := time.Now()
	p.mu.Lock()
	for len(p.oldest) > 0 && now.Sub(p.oldest[0].at) >= repeatFor {
		p.forgetOldest()
	}
	if before := p.known[key]; before != nil {
		p.mu.Unlock()
		if before.print != print {
			return verdict{}, false
		}
		<-before.done
		return before.verdict, true
	}
	if len(p.oldest) >= maxRepeats {
		p.forgetOldest()
	}
	r := &remembered{key: key, print: print, at: now, done: make(chan struct{})}
	if p.known == nil {
		p.known = map[string]*remembered{}
	}
	p.known[key] = r
	p.oldest = append(p.oldest, r)
	p.mu.Unlock()
	defer close(r.done)
	if r.verdict = send(); r.verdict.status == http.StatusConflict || r.verdict.elsewhere() { // nothing was sent: the next try is the first
		p.mu.Lock()
		if p.known[key] == r {
			delete(p.known, key)
		}
		p.mu.Unlock()
	}
	return r.verdict, true
}

// forgetOldest forgets the verdict that has been remembered the longest. The lock is held.
func (p *repeats) forgetOldest() {
	old := p.oldest[0]
	if p.known[old.key] == old {
		delete(p.known, old.key)
	}
	p.oldest[0] = nil
	p.oldest = p.oldest[1:]
}
