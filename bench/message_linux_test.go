// Package bench measures wsbridge beside nchan and a bare gorilla server, with the same load in the same run: on a machine that has other work to do only such ratios mean
// something. The servers and the backend are processes of their own.
package bench

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

const (
	rounds = 3               // in turn; the median of each figure counts
	span   = 3 * time.Second // of one measurement
)

// largestOfNchan is the size of the largest messages that nchan is measured with, in bytes: set up so it closes a connection on one of 4 KiB.
const largestOfNchan = 1 << 10

// mostOfNchan is the largest number of clients that nchan is measured with: of 19,000 that speak at once it has closed some.
const mostOfNchan = 5_000

// BenchmarkMessage prints the server's processor time for one message and its answer, with clients that have one under way each, by their number and the message's size.
func BenchmarkMessage(b *testing.B) {
	bed := newBed(b)
	for _, row := range []struct{ clients, size int }{{64, 64}, {512, 64}, {5_000, 64}, {19_000, 64}, {64, 1 << 10}, {64, 16 << 10}, {64, 64 << 10}} {
		b.Run(fmt.Sprintf("%d_clients/%d_bytes", row.clients, row.size), func(b *testing.B) {
			kinds := []string{"wsbridge", "nchan", "gorilla"}
			if row.size > largestOfNchan || row.clients > mostOfNchan {
				kinds = []string{"wsbridge", "gorilla"}
			}
			name, first, place := "clients", "clients", row.clients
			if row.size > 64 {
				name, first, place = "sizes", "bytes", row.size
			}
			compare(b, name, first, fmt.Sprint(place), kinds, "us/message", func(kind string) float64 { return cost(b, bed, kind, row.clients, row.size) })
		})
	}
}

// compare measures the servers in turn, and prints the median of each one's figures and the ratio to nchan's. It is a row of the table with that name.
func compare(b *testing.B, name, first, place string, kinds []string, unit string, measure func(kind string) float64) {
	b.Helper()
	figures := map[string][]float64{}
	for range rounds {
		for _, kind := range kinds {
			figures[kind] = append(figures[kind], measure(kind))
		}
	}
	b.ReportMetric(0, "ns/op")
	for _, kind := range kinds {
		b.ReportMetric(median(figures[kind]), kind+"-"+unit)
	}
	row := []string{place}
	for _, kind := range []string{"wsbridge", "nchan", "gorilla"} {
		text := ""
		if figures[kind] != nil {
			text = fmt.Sprintf("%.1f", median(figures[kind]))
		}
		row = append(row, text)
	}
	ratio := ""
	if theirs := figures["nchan"]; theirs != nil {
		b.ReportMetric(median(figures["wsbridge"])/median(theirs), "x-nchan")
		ratio = fmt.Sprintf("%.2f", median(figures["wsbridge"])/median(theirs))
	}
	t := tabulate(name, []string{first, "wsbridge, " + unit, "nchan", "gorilla alone", "x nchan"}, append(row, ratio)...)
	if t.unit, t.beside = unit, 2; name == "clients" || name == "sizes" || name == "members" {
		t.axis = first
	}
	if name == "sizes" {
		t.beside = 3 // nchan has not all of them
	}
}

// cost returns the processor time of one message, in microseconds.
func cost(b *testing.B, bed *bed, kind string, clients, size int) float64 {
	b.Helper()
	s := bed.start(b, kind)
	defer s.stop()
	f := dial(b, s, clients, size, s.url)
	defer f.close()
	f.run(b, span/6, 0) // connections to the backend are opened, and stacks grown
	before := s.cpu(b)
	took := f.run(b, span, 0)
	return float64((s.cpu(b) - before).Microseconds()) / float64(len(took))
}

// BenchmarkTail prints how long a message takes from when it was due until its answer is there, at half of the rate that the slower of wsbridge and nchan has at the most: 64
// clients, 64 bytes.
func BenchmarkTail(b *testing.B) {
	const clients, size = 64, 64
	bed := newBed(b)
	most := map[string]float64{}
	kinds := []string{"wsbridge", "nchan"}
	with := func(kind string, do func(f *fleet)) {
		s := bed.start(b, kind)
		defer s.stop()
		f := dial(b, s, clients, size, s.url)
		defer f.close()
		f.run(b, span/6, 0)
		do(f)
	}
	for _, kind := range kinds {
		with(kind, func(f *fleet) { most[kind] = float64(len(f.run(b, span, 0))) / span.Seconds() })
	}
	rate := min(most["wsbridge"], most["nchan"]) / 2
	interval := time.Duration(clients / rate * float64(time.Second))
	shares := []struct {
		name  string
		share float64
	}{{"p50", .5}, {"p99", .99}, {"p99.9", .999}}
	times := map[string][]float64{}
	for range rounds {
		for _, kind := range kinds {
			with(kind, func(f *fleet) {
				took := f.run(b, 2*span, interval)
				for _, s := range shares {
					name := kind + "-" + s.name + "-us"
					times[name] = append(times[name], float64(quantile(took, s.share).Microseconds()))
				}
			})
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(rate, "messages/s")
	for name, all := range times {
		b.ReportMetric(median(all), name)
	}
	for _, kind := range kinds {
		row := []string{fmt.Sprintf("%.0f", rate), kind}
		for _, s := range shares {
			row = append(row, fmt.Sprintf("%.2f ms", median(times[kind+"-"+s.name+"-us"])/1000))
		}
		tabulate("tail", []string{"messages a second", "", "median", "99 %", "99.9 %"}, row...)
	}
}

// BenchmarkIdle prints the memory that the server's processes grow by for each connection that says nothing, some seconds after they were opened.
func BenchmarkIdle(b *testing.B) {
	bed := newBed(b)
	for _, clients := range []int{10_000, 19_000} {
		b.Run(fmt.Sprintf("%d_clients", clients), func(b *testing.B) {
			compare(b, "idle", "connections", fmt.Sprint(clients), []string{"wsbridge", "nchan", "gorilla"}, "KiB/connection", func(kind string) float64 { return growth(b, bed, kind, clients) })
		})
	}
}

// BenchmarkHeartbeats prints which share of a processor pings and pongs take while nothing else happens. The others send none as they are set up here.
func BenchmarkHeartbeats(b *testing.B) {
	const (
		clients = 10_000
		every   = 25 * time.Second // WSBRIDGE_PING_INTERVAL
	)
	bed := newBed(b)
	s := bed.start(b, "wsbridge")
	defer s.stop()
	f := dial(b, s, clients, 0, s.url)
	defer f.close()
	for _, c := range f.conns {
		go c.NextReader() // pongs are sent by who reads
	}
	time.Sleep(every) // by then each has its place
	before := s.cpu(b)
	time.Sleep(every)
	share := 100 * (s.cpu(b) - before).Seconds() / every.Seconds()
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(share, "%-of-a-core")
	tabulate("heartbeats", []string{"connections", "pings in 25 s", "wsbridge, % of a core"}, fmt.Sprint(clients), fmt.Sprint(clients), fmt.Sprintf("%.1f", share))
}

// warmUp is how long a server may be busy with itself when it has started: wsbridge has a spare worker a second behind the first.
const warmUp = 2 * time.Second

// BenchmarkConnect prints the server's processor time for opening a connection: wsbridge asks the backend whether it may be, the others don't.
func BenchmarkConnect(b *testing.B) {
	const clients = 5_000
	bed := newBed(b)
	compare(b, "connect", "connections", fmt.Sprint(clients), []string{"wsbridge", "nchan", "gorilla"}, "us/connection", func(kind string) float64 {
		s := bed.start(b, kind)
		defer s.stop()
		time.Sleep(warmUp)
		before := s.cpu(b)
		f := dial(b, s, clients, 0, s.url)
		defer f.close()
		return float64((s.cpu(b) - before).Microseconds()) / clients
	})
}

// BenchmarkOpening prints how many connections a second are opened, as fast as the load generator beside them on the same processors gets on.
func BenchmarkOpening(b *testing.B) {
	const clients = 19_000
	bed := newBed(b)
	compare(b, "opening", "connections", fmt.Sprint(clients), []string{"wsbridge", "nchan", "gorilla"}, "opened/s", func(kind string) float64 {
		s := bed.start(b, kind)
		defer s.stop()
		time.Sleep(warmUp)
		began := time.Now()
		f := dial(b, s, clients, 0, s.url)
		took := time.Since(began)
		f.close()
		return clients / took.Seconds()
	})
}

// growth returns the memory of one connection, in KiB.
func growth(b *testing.B, bed *bed, kind string, clients int) float64 {
	b.Helper()
	s := bed.start(b, kind)
	defer s.stop()
	before := s.memory(b)
	f := dial(b, s, clients, 0, s.url)
	defer f.close()
	time.Sleep(2 * span)
	return float64(s.memory(b)-before) / 1024 / float64(clients)
}

func median(all []float64) float64 {
	return slices.Sorted(slices.Values(all))[len(all)/2]
}
