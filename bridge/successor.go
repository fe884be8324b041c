package bridge

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httputil"
	"time"

	"wsbridge/upstream"
)

// successor is the worker that serves now, as one that has handed over reaches it: through the listener for pushes. What comes to the
// old one over connections that were open is passed on.
type successor struct {
	transport http.RoundTripper
	proxy     *httputil.ReverseProxy
	token     string
}

// forwardFor is how long a message that an answer sends to others may take to the worker that has them.
const forwardFor = 10 * time.Second

func newSuccessor(transport http.RoundTripper, token string) *successor {
	return &successor{transport: transport, token: token, proxy: &httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1, // a batch's verdicts
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", "localhost", r.In.Host
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			problem(w, http.StatusServiceUnavailable, "", restartingDetail)
		},
	}}
}

const restartingDetail = "wsbridge is restarting: send it again"

// here runs f, which does not wait for anybody, if this worker has the connections. It returns who has them if not.
func (b *Bridge) here(f func()) *successor {
	b.pushing.RLock()
	defer b.pushing.RUnlock()
	next := b.next.Load()
	if next == nil {
		f()
	}
	return next
}

// serve passes a request on. Of one whose body has been read the body is given.
func (s *successor) serve(w http.ResponseWriter, r *http.Request, body []byte) {
	if body != nil {
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	w.Header().Set("Connection", "close") // the next one goes there by itself
	s.proxy.ServeHTTP(w, r)
}

// line passes a line of a batch on.
func (s *successor) line(line []byte) verdict {
	v := batchVerdict{Status: http.StatusServiceUnavailable, Detail: restartingDetail}
	if answer, err := s.post(context.Background(), "/batch", "", line); err == nil {
		defer answer.Body.Close()
		json.NewDecoder(answer.Body).Decode(&v) // without an answer it stays what it is
	}
	return verdict{v.Status, v.result, v.Detail, v.Field}
}

// post sends a request of our own.
func (s *successor) post(ctx context.Context, route, contentType string, body []byte) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost"+route, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	if s.token != "" {
		r.Header.Set("Authorization", "Bearer "+s.token)
	}
	return (&http.Client{Transport: s.transport}).Do(r)
}

// deliver passes on what an answer sends to others.
func (s *successor) deliver(route string, messages []upstream.Payload) error {
	ctx, cancel := context.WithTimeout(context.Background(), forwardFor)
	defer cancel()
	for _, m := range messages {
		contentType := "text/plain; charset=utf-8"
		if m.Binary {
			contentType = "application/octet-stream"
		}
		answer, err := s.post(ctx, route, contentType, m.Data)
		if err != nil {
			return err
		}
		answer.Body.Close()
	}
	return nil
}
