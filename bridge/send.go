package bridge

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"wsbridge/upstream"
)

// verdict is what a pusher is told of one sending: a status, and a result or a problem.
type verdict struct {
	status int
	result *result
	detail string // of a problem
	field  string // of the request that is at fault, if one is
}

// elsewhere is the verdict of a worker that does not serve any more.
func (v verdict) elsewhere() bool { return v.status == http.StatusServiceUnavailable }

// write writes the verdict as a response.
func (v verdict) write(w http.ResponseWriter) {
	switch {
	case v.status >= 400:
		problem(w, v.status, v.field, v.detail)
	case v.result != nil:
		answer(w, v.status, v.result)
	default:
		w.WriteHeader(v.status)
	}
}

// pushSend sends the body to whom the route names.
func (b *Bridge) pushSend(w http.ResponseWriter, r *http.Request) {
	t, ok := named(w, r)
	if !ok {
		return
	}
	var o options
	allowed := []string{"confirm", "ttl", "collapse"}
	if t.kind != toOne {
		allowed = append(allowed, "except")
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		problem(w, http.StatusBadRequest, "", "the query can't be read: "+err.Error())
		return
	}
	if name, err := o.parseQuery(query, time.Now(), allowed...); errors.Is(err, errNoOption) {
		noOption(w, r, name)
		return
	} else if err != nil {
		problem(w, http.StatusBadRequest, name, err.Error())
		return
	}
	contentType := r.Header.Get("Content-Type")
	if strings.HasPrefix(strings.ToLower(strings.TrimSpace(contentType)), "multipart/") {
		problem(w, http.StatusUnsupportedMediaType, "Content-Type", fmt.Sprintf("%q is no message: send the body as it is", contentType))
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, b.config.PushMaxBody))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		b.metrics.pushes.WithLabelValues("too_large").Inc()
		problem(w, http.StatusRequestEntityTooLarge, "", fmt.Sprintf("the body is larger than %d bytes (WSBRIDGE_PUSH_MAX_BODY)", b.config.PushMaxBody))
		return
	} else if err != nil {
		problem(w, http.StatusBadRequest, "", "the body can't be read: "+err.Error())
		return
	}
	send := func() verdict { return b.push(t, upstream.NewPayload(contentType, false, body), o) }
	keys := r.Header.Values("Idempotency-Key")
	if len(keys) == 0 {
		b.conclude(w, r, body, send())
		return
	}
	if len(keys) > 1 || keys[0] == "" || len(keys[0]) > maxRepeatKey {
		problem(w, http.StatusBadRequest, "Idempotency-Key", fmt.Sprintf("use one key of 1 to %d bytes", maxRepeatKey))
		return
	}
	print := sha256.New()
	fmt.Fprintf(print, "%q %q ", r.URL.RawQuery, contentType)
	print.Write(body)
	v, same := b.repeats.once(r.URL.EscapedPath()+" "+keys[0], [sha256.Size]byte(print.Sum(nil)), send)
	if !same {
		problem(w, http.StatusUnprocessableEntity, "Idempotency-Key", "this key has been used for another message within the last 10 minutes")
		return
	}
	b.conclude(w, r, body, v)
}

// conclude writes the verdict, or lets the worker that serves now find one.
func (b *Bridge) conclude(w http.ResponseWriter, r *http.Request, body []byte, v verdict) {
	if next := b.next.Load(); next != nil && v.elsewhere() {
		next.serve(w, r, body)
		return
	}
	v.write(w)
}

// push sends a message and returns the verdict.
func (b *Bridge) push(t target, message upstream.Payload, o options) verdict {
	p := b.newParcel([]upstream.Payload{message}, o)
	var r result
	if next := b.here(func() { r = b.dispatch(t, p) }); next != nil {
		return verdict{status: http.StatusServiceUnavailable, detail: restartingDetail}
	}
	return b.verdict(t, p.await(r))
}

// verdict judges and counts.
func (b *Bridge) verdict(t target, r result) verdict {
	v := judge(t, r)
	label := map[int]string{http.StatusAccepted: "queued", http.StatusOK: "confirmed", http.StatusGone: "gone", http.StatusConflict: "opening", http.StatusGatewayTimeout: "unconfirmed"}[v.status]
	b.metrics.pushes.WithLabelValues(label).Inc()
	return v
}

// judge returns the verdict on what became of a sending.
func judge(t target, r result) verdict {
	status := http.StatusAccepted
	if r.Confirmed != nil {
		status = http.StatusOK
	}
	gone := fmt.Sprintf("connection %q is not open", t.name)
	switch {
	case t.kind != toOne:
		return verdict{status: status, result: &r}
	case r.opening:
		return verdict{status: http.StatusConflict, field: "confirm", detail: fmt.Sprintf("connection %q is still opening: it can confirm nothing, and was sent nothing", t.name)}
	case r.Matched == 0:
		return verdict{status: http.StatusGone, detail: gone}
	case r.Queued == 0:
		return verdict{status: http.StatusGone, detail: gone + " any more: it has just ended, or is too slow"}
	case r.Confirmed == nil || *r.Confirmed == 1:
		return verdict{status: status}
	case r.left > 0:
		return verdict{status: http.StatusGone, detail: gone + " any more: it ended before it had confirmed the message"}
	}
	return verdict{status: http.StatusGatewayTimeout, detail: "the client has not confirmed the message in time; it may still get it"}
}
