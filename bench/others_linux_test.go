package bench

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"
)

// BenchmarkOthers prints how long the messages of 64 clients take at a rate that wsbridge has easily, alone and beside what may disturb them: clients whose messages take the
// backend a second each, and collections of garbage.
func BenchmarkOthers(b *testing.B) {
	const clients, size, rate = 64, 64, 2_000
	bed := newBed(b)
	interval := time.Duration(clients) * time.Second / rate
	rows := []struct {
		name    string
		disturb func(b *testing.B, s *server, over <-chan struct{}, all *sync.WaitGroup)
	}{
		{"alone", func(*testing.B, *server, <-chan struct{}, *sync.WaitGroup) {}},
		{"8 of the 16 POSTs at once take a second", slowClients},
		{"a collection of garbage 10 times a second", collections},
	}
	times := make([][3][]float64, len(rows))
	for range rounds {
		for i, row := range rows {
			func() {
				s := bed.start(b, "wsbridge")
				defer s.stop()
				f := dial(b, s, clients, size, s.url)
				defer f.close()
				over := make(chan struct{})
				var all sync.WaitGroup
				row.disturb(b, s, over, &all)
				f.run(b, span/6, 0)
				took := f.run(b, 2*span, interval)
				close(over)
				all.Wait()
				for j, share := range []float64{.5, .99, .999} {
					times[i][j] = append(times[i][j], float64(quantile(took, share).Microseconds())/1000)
				}
			}()
		}
	}
	b.ReportMetric(0, "ns/op")
	for i, row := range rows {
		b.ReportMetric(median(times[i][1]), strconv.Itoa(i)+"-p99-ms")
		cells := []string{row.name}
		for _, t := range times[i] {
			cells = append(cells, fmt.Sprintf("%.2f ms", median(t)))
		}
		tabulate("others", []string{"", "median", "99 %", "99.9 %"}, cells...)
	}
}

// slowClients says something for which the backend needs a second, again and again.
func slowClients(b *testing.B, s *server, over <-chan struct{}, all *sync.WaitGroup) {
	const clients = 8
	f := dial(b, s, clients, 64, func(int) string { return s.url(0) + "?slow" })
	for i, c := range f.conns {
		all.Go(func() {
			defer c.Close()
			for n := 0; ; n++ {
				select {
				case <-over:
					return
				default:
				}
				if err := f.exchange(c, i, n); err != nil {
					b.Errorf("a slow client: %v", err)
					return
				}
			}
		})
	}
}

// collections lets the worker collect its garbage every tenth of a second.
func collections(b *testing.B, s *server, over <-chan struct{}, all *sync.WaitGroup) {
	all.Go(func() {
		for tick := time.NewTicker(100 * time.Millisecond); ; {
			select {
			case <-over:
				tick.Stop()
				return
			case <-tick.C:
			}
			resp, err := http.Get("http://" + s.push + "/debug/pprof/heap?gc=1")
			if err != nil {
				b.Errorf("a collection: %v", err)
				return
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	})
}
