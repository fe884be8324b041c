package bench

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// BenchmarkPush prints the server's processor time for a push to one of 1,000 connections, by 16 pushers that wait for each answer: one by one, and for wsbridge 100 in one
// request as well.
func BenchmarkPush(b *testing.B) {
	bed := newBed(b)
	for _, batch := range []int{1, 100} {
		b.Run(fmt.Sprintf("%d_at_once", batch), func(b *testing.B) {
			compare(b, "push", "pushes in a request (nchan: one)", fmt.Sprint(batch), []string{"wsbridge", "nchan"}, "us/push", func(kind string) float64 {
				size := batch
				if kind == "nchan" {
					size = 1
				}
				return pushCost(b, bed, kind, size)
			})
		})
	}
}

// pushCost returns the processor time of one push, in microseconds.
func pushCost(b *testing.B, bed *bed, kind string, batch int) float64 {
	b.Helper()
	const clients, pushers = 1_000, 16
	s := bed.start(b, kind)
	defer s.stop()
	f := dial(b, s, clients, 0, s.one)
	defer f.close()
	targets := make([]string, clients)
	for i, c := range f.conns {
		targets[i] = fmt.Sprintf("/groups/one%d", i)
		if kind == "wsbridge" {
			c.SetReadDeadline(time.Now().Add(patience))
			_, id, err := c.ReadMessage()
			if err != nil {
				b.Fatal(err)
			}
			targets[i] = "/connections/" + string(id)
		}
	}
	time.Sleep(settle)
	var counts [clients]int // of what each client has had
	var readers sync.WaitGroup
	for i, c := range f.conns {
		c.SetReadDeadline(time.Time{})
		readers.Go(func() {
			for {
				if _, message, err := c.ReadMessage(); err != nil {
					return
				} else if string(message) == pushed(i) {
					counts[i]++
				}
			}
		})
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: pushers}, Timeout: patience}
	post := func(n int) error {
		url, kind, body := "http://"+s.push+targets[n%clients], "text/plain", pushed(n%clients)
		if batch > 1 {
			var lines bytes.Buffer
			for i := range batch {
				fmt.Fprintf(&lines, "{\"to\":%q,\"body\":%q}\n", targets[(n+i)%clients], pushed((n+i)%clients))
			}
			url, kind, body = "http://"+s.push+"/batch", "application/x-ndjson", lines.String()
		}
		resp, err := client.Post(url, kind, strings.NewReader(body))
		if err != nil {
			return err
		}
		answer, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if refused := bytes.Count(answer, []byte(`"status":4`)); err == nil && (resp.StatusCode/100 != 2 || refused > 0) {
			err = fmt.Errorf("%s: %.200s", resp.Status, answer)
		}
		return err
	}
	sent := make([]int, pushers)
	errs := make([]error, pushers)
	run := func(during time.Duration) {
		var all sync.WaitGroup
		for p := range pushers {
			all.Go(func() {
				for start, n := time.Now(), p*clients/pushers; time.Since(start) < during && errs[p] == nil; n += batch {
					errs[p] = post(n)
					sent[p] += batch
				}
			})
		}
		all.Wait()
		if err := errors.Join(errs...); err != nil {
			b.Fatalf("pushes to %s: %v", kind, err)
		}
	}
	run(span / 6)
	before, warm := s.cpu(b), sum(sent)
	run(span)
	took := s.cpu(b) - before
	time.Sleep(settle)
	f.close()
	readers.Wait()
	if had := sum(counts[:]); had != sum(sent) {
		b.Fatalf("%s: %d of %d pushes came", kind, had, sum(sent))
	}
	return float64(took.Microseconds()) / float64(sum(sent)-warm)
}

func sum(all []int) (n int) {
	for _, one := range all {
		n += one
	}
	return n
}
