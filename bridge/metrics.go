package bridge

import (
	"net/http"
	"slices"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"wsbridge/holder"
)

// metrics count at the doors. Labels come from closed sets of ours: codes that a client or the backend chose are not labels.
type metrics struct {
	accepted prometheus.Counter
	messages *prometheus.CounterVec // by direction
	bytes    *prometheus.CounterVec // by direction
	closes   *prometheus.CounterVec // by code
	refused  *prometheus.CounterVec // by gate
	pushes   *prometheus.CounterVec // by verdict
	dropped  *prometheus.CounterVec // by reason
	resumed  *prometheus.CounterVec // by result
	goOn     prometheus.Counter     // of resumed

	lost              map[loss]prometheus.Counter // of dropped: a look-up by label takes as long as a drop
	verdicts          map[int]prometheus.Counter  // of pushes, by status
	in, out           prometheus.Counter
	bytesIn, bytesOut prometheus.Counter
}

func newMetrics(registry prometheus.Registerer, b *Bridge) *metrics {
	counter := func(name, help string, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	m := &metrics{
		accepted: prometheus.NewCounter(prometheus.CounterOpts{Name: "wsbridge_connections_accepted_total", Help: "Connections that the backend accepted."}),
		messages: counter("wsbridge_messages_total", "Messages from clients (in) and to them (out).", "direction"),
		bytes:    counter("wsbridge_message_bytes_total", "Bytes of messages from clients (in) and to them (out), before compression.", "direction"),
		closes:   counter("wsbridge_closes_total", "Ended connections, by our close code; client: it closed or vanished by itself; backend: a code of its own.", "code"),
		refused:  counter("wsbridge_handshakes_refused_total", "Handshakes refused, by gate.", "gate"),
		pushes:   counter("wsbridge_pushes_total", "Pushes, by verdict.", "verdict"),
		dropped:  counter("wsbridge_dropped_total", "Messages and disconnect events that were dropped, by reason.", "reason"),
	}
	m.resumed = counter("wsbridge_connections_resumed_total", "Connections taken over from another worker: resumed, closed, ended (while no worker had them); repeated: events that are posted again.", "result")
	m.goOn = m.resumed.WithLabelValues("resumed")
	m.begin()
	m.lost = map[loss]prometheus.Counter{}
	for _, why := range []loss{lossSlow, lossExpired, lossCollapsed, lossGone} {
		m.lost[why] = m.dropped.WithLabelValues(string(why))
	}
	m.verdicts = map[int]prometheus.Counter{}
	for status, label := range map[int]string{
		http.StatusAccepted: "queued", http.StatusOK: "confirmed", http.StatusGone: "gone", http.StatusConflict: "opening", http.StatusGatewayTimeout: "unconfirmed",
		http.StatusRequestEntityTooLarge: "too_large",
	} {
		m.verdicts[status] = m.pushes.WithLabelValues(label)
	}
	m.in, m.out = m.messages.WithLabelValues("in"), m.messages.WithLabelValues("out")
	m.bytesIn, m.bytesOut = m.bytes.WithLabelValues("in"), m.bytes.WithLabelValues("out")
	if registry != nil {
		registry.MustRegister(m.accepted, m.messages, m.bytes, m.closes, m.refused, m.pushes, m.dropped, m.resumed, starts{b},
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "wsbridge_connections", Help: "Connections open or opening."},
				func() float64 { return float64(b.registry.count()) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "wsbridge_connections_parked", Help: "Connections of which only a record and a socket are in memory."},
				func() float64 { return float64(b.parking.parked()) }),
			prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "wsbridge_connections_built_total", Help: "Parked connections that were built, since what came for them or from them needed more than a small message does."},
				func() float64 { return float64(b.built.Load()) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "wsbridge_goodbyes_waiting", Help: "Disconnect events that the backend has not taken yet."},
				func() float64 { return float64(b.goodbyes.count()) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "wsbridge_queue_bytes", Help: "Bytes that wait to be written to clients."},
				func() float64 { return float64(b.queued()) }))
	}
	return m
}

// closeCodes are those that are counted by themselves.
var closeCodes = []int{1000, 1001, 1002, 1007, 1008, 1009, 1011, 1012, 1013, 3000, 3003, 3008}

// begin makes every series known from the beginning: the rate of one that appears with its first event lacks that.
func (m *metrics) begin() {
	for counter, labels := range map[*prometheus.CounterVec][]string{
		m.closes: {byClient, byBackend},
		m.refused: {string(gatePath), string(gateUpgrade), string(gateDraining), string(gateConnections), string(gateAddress), string(gateRate), string(gateOrigin),
			string(gateBackend)},
		m.pushes:  {"queued", "confirmed", "unconfirmed", "gone", "opening", "too_large"},
		m.dropped: {"goodbye"},
		m.resumed: {"resumed", "closed", "ended", "repeated"},
	} {
		for _, label := range labels {
			counter.WithLabelValues(label)
		}
	}
	for _, code := range closeCodes {
		m.closes.WithLabelValues(strconv.Itoa(code))
	}
}

// starts are how many workers have been told to serve, by cause.
type starts struct{ bridge *Bridge }

var startsDesc = prometheus.NewDesc("wsbridge_worker_starts_total", "Workers that were told to serve, by cause: start, reload, crash, hang, reload failed.", []string{"cause"}, nil)

// Describe describes the metric.
func (s starts) Describe(c chan<- *prometheus.Desc) { c <- startsDesc }

// Collect collects it.
func (s starts) Collect(c chan<- prometheus.Metric) {
	counts := s.bridge.starts.Load()
	if counts == nil {
		return
	}
	for _, cause := range []string{holder.CauseStart, holder.CauseReload, holder.CauseCrash, holder.CauseHang, holder.CauseReloadFailed} {
		c <- prometheus.MustNewConstMetric(startsDesc, prometheus.CounterValue, float64((*counts)[cause]), cause)
	}
}

func (m *metrics) received(bytes int) {
	m.in.Inc()
	m.bytesIn.Add(float64(bytes))
}

func (m *metrics) sent(messages, bytes int) {
	m.out.Add(float64(messages))
	m.bytesOut.Add(float64(bytes))
}

// pushed counts a push by the status of its verdict.
func (m *metrics) pushed(status int) { m.verdicts[status].Inc() }

func (m *metrics) ended(why *Close) {
	label := byBackend
	if slices.Contains(closeCodes, why.Code) {
		label = strconv.Itoa(why.Code)
	}
	if why.By == byClient {
		label = byClient
	}
	m.closes.WithLabelValues(label).Inc()
}

// queued is the sum of what waits for clients, in bytes.
func (b *Bridge) queued() (bytes int64) {
	for _, c := range b.registry.members(target{kind: toAll}) {
		c.mu.Lock()
		if c.work != nil {
			bytes += c.out.bytes
		}
		c.mu.Unlock()
	}
	return bytes
}

func (g *goodbyes) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.waiting) + g.posting
}
