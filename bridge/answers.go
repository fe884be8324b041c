package bridge

import (
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
)

const (
	// pendingVerdicts is how many lines of a batch may be sent while the verdict on an earlier one is still out, since a client's word is waited for.
	pendingVerdicts = 256
	// batchTogether is how many lines of a batch are answered together at most.
	batchTogether = 64
)

// batchVerdict is the answer to one line.
type batchVerdict struct {
	Status int `json:"status"`
	*result
	Detail string `json:"detail,omitempty"`
	Field  string `json:"field,omitempty"`
}

// pendingVerdict is the verdict on one line, or what it will come from.
type pendingVerdict struct {
	verdict
	later <-chan verdict // or nil
}

// batchAnswers are the verdicts on a batch's lines on their way to who sent it. Those on lines that come together are written together: to wake who writes for each,
// which mostly is faster than the lines, would be a write for each as well.
type batchAnswers struct {
	mu      sync.Mutex // guards the following
	changed sync.Cond
	queue   []pendingVerdict
	at      int  // where the first of them is
	due     bool // what is queued is to be written
	over    bool // no more are added
}

func newBatchAnswers() *batchAnswers {
	a := &batchAnswers{}
	a.changed.L = &a.mu
	return a
}

// add queues a verdict, and waits where too many are queued.
func (a *batchAnswers) add(v pendingVerdict) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.queue) == cap(a.queue) && a.at > 0 { // the room of those that are gone is used again
		a.queue, a.at = a.queue[:copy(a.queue, a.queue[a.at:])], 0
	}
	if a.queue = append(a.queue, v); a.queued() >= batchTogether {
		a.fallsDue()
	}
	for a.queued() >= pendingVerdicts {
		a.changed.Wait()
	}
}

// pause says that nothing more may be added for a while.
func (a *batchAnswers) pause() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fallsDue()
}

// end says that no more are added.
func (a *batchAnswers) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = true
	a.fallsDue()
}

// queued returns how many there are. The lock is held, here and in what follows.
func (a *batchAnswers) queued() int { return len(a.queue) - a.at }

// fallsDue lets what is queued be written.
func (a *batchAnswers) fallsDue() {
	a.due = a.queued() > 0
	a.changed.Broadcast()
}

// next returns the next verdict, once it is due, and whether it is the last of those. It returns false when there are no more.
func (a *batchAnswers) next() (v pendingVerdict, last, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for !a.due {
		if a.over {
			return pendingVerdict{}, true, false
		}
		a.changed.Wait()
	}
	v, a.queue[a.at] = a.queue[a.at], pendingVerdict{}
	if a.at++; a.queued() == 0 {
		a.queue, a.at, a.due = a.queue[:0], 0, false
	}
	if a.queued() == pendingVerdicts-1 {
		a.changed.Broadcast() // there is room
	}
	return v, !a.due, true
}

// write writes the verdicts as they come, in their order, and returns behind the last. None that is known waits for one that is not.
func (a *batchAnswers) write(w http.ResponseWriter, control *http.ResponseController) {
	var line []byte
	for v, last, ok := a.next(); ok; v, last, ok = a.next() {
		if v.later != nil {
			select {
			case v.verdict = <-v.later:
			default:
				control.Flush()
				v.verdict = <-v.later
			}
		}
		line = v.appendLine(line[:0])
		w.Write(line)
		if last {
			control.Flush()
		}
	}
}

// appendLine appends the verdict as a line of JSON.
func (v verdict) appendLine(dst []byte) []byte {
	if v.result == nil && v.detail == "" && v.field == "" {
		return append(strconv.AppendInt(append(dst, `{"status":`...), int64(v.status), 10), "}\n"...)
	}
	line, _ := json.Marshal(batchVerdict{v.status, v.result, v.detail, v.field}) // of numbers and strings: it can't fail
	return append(append(dst, line...), '\n')
}
