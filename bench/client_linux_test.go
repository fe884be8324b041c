package bench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"wsbridge/upstream"
)

// posts is how many POSTs each client of the backend may have under way, as WSBRIDGE_BACKEND_MAX_CONCURRENT has it.
const posts = 16

// poster POSTs a message to the backend and returns its answer.
type poster func(body []byte) ([]byte, error)

// BenchmarkClient prints the processor time of a POST by the client that wsbridge has of its own, by net/http's and by fasthttp's. All send the fields that wsbridge sends.
func BenchmarkClient(b *testing.B) {
	backend := part(b, "backend")
	defer backend.stop()
	kinds := []string{"wsbridge", "net/http", "fasthttp"}
	start := map[string]func(b *testing.B, url string) (poster, func()){"wsbridge": ours, "net/http": standard, "fasthttp": fast}
	for _, senders := range []int{64, 512} {
		b.Run(fmt.Sprintf("%d_senders", senders), func(b *testing.B) {
			figures := map[string][]float64{}
			for range rounds {
				for _, kind := range kinds {
					post, stop := start[kind](b, "http://"+backend.address+"/")
					figures[kind] = append(figures[kind], spend(b, post, senders))
					stop()
				}
			}
			b.ReportMetric(0, "ns/op")
			row := []string{fmt.Sprint(senders)}
			for _, kind := range kinds {
				b.ReportMetric(median(figures[kind]), kind+"-us/POST")
				row = append(row, fmt.Sprintf("%.1f", median(figures[kind])))
			}
			tabulate("client", []string{"senders", "wsbridge's, us/POST", "net/http", "fasthttp"}, row...)
		})
	}
}

// spend lets so many senders POST for a while, each one message after the other, and returns the processor time that one took in this process, in microseconds.
func spend(b *testing.B, post poster, senders int) float64 {
	b.Helper()
	var done atomic.Int64
	run := func(during time.Duration) {
		var all sync.WaitGroup
		end := time.Now().Add(during)
		for i := range senders {
			all.Go(func() {
				body := fmt.Appendf(nil, "%-64d", i)
				for time.Now().Before(end) {
					if got, err := post(body); err != nil || !bytes.Equal(got, body) {
						b.Errorf("answer %q, %v", got, err)
						return
					}
					done.Add(1)
				}
			})
		}
		all.Wait()
	}
	run(span / 6) // connections are opened
	done.Store(0)
	before := used(b)
	run(span)
	return float64((used(b) - before).Microseconds()) / float64(done.Load())
}

// used returns the processor time of this process.
func used(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// message is one of a client that a browser might be.
func message(body []byte) *upstream.Event {
	return &upstream.Event{
		Type: upstream.Message, ID: "0pgn422j2eha090n1rtmiob84brs4ddvbvog-1", Time: time.Now(), ConnectionID: "0pgn422j2eha090n1rtmiob84brs4ddvbvog", Sequence: 2, Attempt: 1,
		UserID: "u1", Handshake: handshake, Body: upstream.Payload{Data: body},
	}
}

var handshake = &upstream.Handshake{
	Path: "/ws", RequestHost: "app.example", ForwardedFor: "192.0.2.1", Proto: "https", Host: "app.example", Address: "192.0.2.1", Cookie: "session=0123456789abcdef",
	Header: []upstream.Field{{Name: "Origin", Value: "https://app.example"}, {Name: "User-Agent", Value: "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"}},
}

func ours(b *testing.B, url string) (poster, func()) {
	b.Helper()
	config := upstream.Config{
		TextType: "text/plain; charset=utf-8", Events: upstream.Types{upstream.Message}, Timeout: patience, Retry: upstream.RetrySafe, RetryFor: patience, MaxConcurrent: posts, MaxAnswer: 1 << 20,
	}
	if err := config.URL.UnmarshalText([]byte(url)); err != nil {
		b.Fatal(err)
	}
	client, err := upstream.New(config, "bench", nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	return func(body []byte) ([]byte, error) {
		reply := client.Post(context.Background(), message(body))
		if len(reply.Messages) != 1 {
			return nil, fmt.Errorf("%d %s", reply.Status, reply.Outcome)
		}
		return reply.Messages[0].Data, nil
	}, client.Close
}

// fields returns the head of a POST of ours, but for what every client makes by itself.
func fields(b *testing.B) http.Header {
	b.Helper()
	var head http.Header
	seen := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		head = r.Header.Clone()
		io.Copy(w, r.Body)
	}))
	defer seen.Close()
	post, stop := ours(b, seen.URL)
	defer stop()
	if _, err := post([]byte("?")); err != nil {
		b.Fatal(err)
	}
	head.Del("Content-Length")
	return head
}

func standard(b *testing.B, url string) (poster, func()) {
	b.Helper()
	head := fields(b)
	transport := &http.Transport{MaxConnsPerHost: posts, MaxIdleConnsPerHost: posts, DisableCompression: true}
	client := &http.Client{Transport: transport}
	return func(body []byte) ([]byte, error) {
		r, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		r.Header = head.Clone()
		resp, err := client.Do(r)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		return io.ReadAll(resp.Body)
	}, transport.CloseIdleConnections
}

func fast(b *testing.B, url string) (poster, func()) {
	b.Helper()
	head := fields(b)
	client := &fasthttp.Client{MaxConnsPerHost: posts, MaxConnWaitTimeout: patience, DisableHeaderNamesNormalizing: true, NoDefaultUserAgentHeader: true}
	return func(body []byte) ([]byte, error) {
		r, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
		defer fasthttp.ReleaseRequest(r)
		defer fasthttp.ReleaseResponse(resp)
		r.Header.SetMethod(http.MethodPost)
		r.SetRequestURI(url)
		for name, values := range head {
			r.Header.Set(name, values[0])
		}
		r.SetBodyRaw(body)
		if err := client.Do(r, resp); err != nil {
			return nil, err
		}
		return bytes.Clone(resp.Body()), nil
	}, client.CloseIdleConnections
}
