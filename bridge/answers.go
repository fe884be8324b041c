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

// batchAnswers are the verdicts on a batch's lines on their way to who sent it.
type batchAnswers struct {
	mu      sync.Mutex // guards the following
	changed sync.Cond
	queue   []pendingVerdict
	out     int // of those that were added: not written yet
	over    bool
}

func newBatchAnswers() *batchAnswers {
	a := &batchAnswers{}
	a.changed.L = &a.mu
	return a
}

// add queues verdicts, behind which nothing may come for a while. It waits where too many are out.
func (a *batchAnswers) add(verdicts []pendingVerdict) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.out >= pendingVerdicts {
		a.changed.Wait()
	}
	a.queue = append(a.queue, verdicts...)
	a.out += len(verdicts)
	a.changed.Broadcast()
}

// end says that no more are added.
func (a *batchAnswers) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = true
	a.changed.Broadcast()
}

// next returns the verdicts that are queued, behind so many that have been written, or none when there are no more.
func (a *batchAnswers) next(written int) []pendingVerdict {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.out -= written
	a.changed.Broadcast()
	for len(a.queue) == 0 && !a.over {
		a.changed.Wait()
	}
	queue := a.queue
	a.queue = nil
	return queue
}

// write writes the verdicts as they come, in their order, and returns behind the last. None that is known waits for one that is not.
func (a *batchAnswers) write(w http.ResponseWriter, control *http.ResponseController) {
	var lines []byte
	for verdicts := a.next(0); len(verdicts) > 0; verdicts = a.next(len(verdicts)) {
		for _, v := range verdicts {
			if v.later != nil {
				select {
				case v.verdict = <-v.later:
				default:
					w.Write(lines)
					control.Flush()
					lines = lines[:0]
					v.verdict = <-v.later
				}
			}
			lines = v.appendLine(lines)
		}
		w.Write(lines)
		control.Flush()
		lines = lines[:0]
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
