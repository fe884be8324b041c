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

// multipart begins the media types that are no message: their boundary is in the Content-Type, which clients don't see.
const multipart = "multipart/"

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
	if t, ok := named(w, r); ok {
		b.send(w, r, t)
	}
}

// sendRoute returns whom a request is to be sent to, if it is a send route that needs no second look: the mux, which finds the others, would look for it twice.
func sendRoute(r *http.Request) (target, bool) {
	if path := r.URL.EscapedPath(); r.Method == http.MethodPost && clean(path) {
		t, err := parseTarget(path)
		return t, err == nil
	}
	return target{}, false
}

// send sends the body to the target. It reports whether the whole body has been read.
func (b *Bridge) send(w http.ResponseWriter, r *http.Request, t target) (read bool) {
	var o options
	if r.URL.RawQuery != "" {
		allowed := []string{"confirm", "ttl", "collapse"}
		if t.kind != toOne {
			allowed = append(allowed, "except")
		}
		query, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			problem(w, http.StatusBadRequest, "", "the query can't be read: "+err.Error())
			return false
		}
		if name, err := o.parseQuery(query, time.Now(), allowed...); errors.Is(err, errNoOption) {
			noOption(w, r, name)
			return false
		} else if err != nil {
			problem(w, http.StatusBadRequest, name, err.Error())
			return false
		}
	}
	contentType := r.Header.Get("Content-Type")
	if strings.HasPrefix(strings.ToLower(strings.TrimSpace(contentType)), multipart) {
		problem(w, http.StatusUnsupportedMediaType, "Content-Type", fmt.Sprintf("%q is no message: send the body as it is", contentType))
		return false
	}
	body, err := whole(w, r, b.config.PushMaxBody)
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		b.metrics.pushed(http.StatusRequestEntityTooLarge)
		problem(w, http.StatusRequestEntityTooLarge, "", fmt.Sprintf("the body is larger than %d bytes (WSBRIDGE_PUSH_MAX_BODY)", b.config.PushMaxBody))
		return false
	} else if err != nil {
		problem(w, http.StatusBadRequest, "", "the body can't be read: "+err.Error())
		return false
	}
	send := func() verdict { return b.push(t, upstream.NewPayload(contentType, false, body), o) }
	keys := r.Header.Values("Idempotency-Key")
	if len(keys) == 0 {
		b.conclude(w, r, body, send())
		return true
	}
	if len(keys) > 1 || keys[0] == "" || len(keys[0]) > maxRepeatKey {
		problem(w, http.StatusBadRequest, "Idempotency-Key", fmt.Sprintf("use one key of 1 to %d bytes", maxRepeatKey))
		return true
	}
	print := sha256.New()
	fmt.Fprintf(print, "%q %q ", r.URL.RawQuery, contentType)
	print.Write(body)
	v, same := b.repeats.once(r.URL.EscapedPath()+" "+keys[0], [sha256.Size]byte(print.Sum(nil)), send)
	if !same {
		problem(w, http.StatusUnprocessableEntity, "Idempotency-Key", "this key has been used for another message within the last 10 minutes")
		return true
	}
	b.conclude(w, r, body, v)
	return true
}

// whole reads the body of a request, at most so many bytes.
func whole(w http.ResponseWriter, r *http.Request, most int64) ([]byte, error) {
	if r.ContentLength < 0 || r.ContentLength > most {
		return io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	}
	body := make([]byte, r.ContentLength)
	_, err := io.ReadFull(r.Body, body)
	return body, err
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
	p := b.newParcel([]upstream.Payload{message}, o, time.Now())
	var r result
	if next := b.here(func() { r = b.dispatch(t, p) }); next != nil {
		return verdict{status: http.StatusServiceUnavailable, detail: restartingDetail}
	}
	return b.verdict(t, r.confirmed(p.receipt, o.confirm))
}

// verdict judges and counts.
func (b *Bridge) verdict(t target, r result) verdict {
	v := judge(t, r)
	b.metrics.pushed(v.status)
	return v
}

// judge returns the verdict on what became of a sending.
func judge(t target, r result) verdict {
	status := http.StatusAccepted
	if r.Confirmed != nil {
		status = http.StatusOK
	}
	gone := func(then string) verdict {
		return verdict{status: http.StatusGone, detail: fmt.Sprintf("connection %q is not open", t.name) + then}
	}
	switch {
	case t.kind != toOne:
		return verdict{status: status, result: &r}
	case r.opening:
		return verdict{status: http.StatusConflict, field: "confirm", detail: fmt.Sprintf("connection %q is still opening: it can confirm nothing, and was sent nothing", t.name)}
	case r.Matched == 0:
		return gone("")
	case r.Queued == 0:
		return gone(" any more: it has just ended, or is too slow")
	case r.Confirmed == nil || *r.Confirmed == 1:
		return verdict{status: status}
	case r.left > 0:
		return gone(" any more: it ended before it had confirmed the message")
	}
	return verdict{status: http.StatusGatewayTimeout, detail: "the client has not confirmed the message in time; it may still get it"}
}
