package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"wsbridge/bridge"
	"wsbridge/upstream"
)

// maxHeader bounds the headers of a request, in bytes: what nginx takes by default, and some.
const maxHeader = 16 << 10

// serveEnvironment serves with the settings of the environment until ctx ends, and then drains.
func serveEnvironment(ctx context.Context, environ []string, stdout, stderr io.Writer) error {
	s, faults := parse(environ)
	if len(faults) > 0 {
		return errors.Join(faultsAsErrors(faults)...)
	}
	if s.Process.Holder == "on" {
		return hold(ctx, s, environ, stdout, stderr)
	}
	clients, err := listen(ctx, s.Process.Listen, s.Process.SocketMode)
	if err != nil {
		return fmt.Errorf("WSBRIDGE_LISTEN: %w", err)
	}
	pushes, err := listen(ctx, s.Process.PushListen, s.Process.SocketMode)
	if err != nil {
		clients.Close()
		return fmt.Errorf("WSBRIDGE_PUSH_LISTEN: %w", err)
	}
	log, level := newLogger(s, stderr)
	defer onSignal(syscall.SIGUSR1, func() { level.toggle(log) })()
	return serve(ctx, s, environ, log, clients, pushes)
}

// onSignal calls f whenever the signal comes, until it is stopped.
func onSignal(s os.Signal, f func()) (stop func()) {
	signals := make(chan os.Signal, 1) // one that is on its way stands for those behind it
	signal.Notify(signals, s)
	go func() {
		for range signals {
			f()
		}
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
	}
}

// serve runs the program on two listeners, which it closes, until ctx ends. Then it drains: no new clients, connections closed one by
// one, disconnect events delivered; pushes are taken until the last client has gone.
func serve(ctx context.Context, s settings, environ []string, log *slog.Logger, clients, pushes net.Listener) error {
	defer clients.Close()
	defer pushes.Close()
	v, err := newService(s, environ, log, nil)
	if err != nil {
		return err
	}
	defer v.close()
	doors, err := v.open(clients, pushes)
	if err != nil {
		return err
	}
	log.Info("serving", "listen", clients.Addr().String(), "push_listen", pushes.Addr().String(), "backend", s.Backend.URL.String(), "version", version())
	daemon.SdNotify(false, daemon.SdNotifyReady) // without systemd it does nothing

	select {
	case err = <-doors.failed:
		err = fmt.Errorf("a listener failed: %w", err)
	case <-ctx.Done():
		log.Info("draining", "cause", context.Cause(ctx).Error(), "timeout", s.Process.DrainTimeout.String())
	}
	daemon.SdNotify(false, daemon.SdNotifyStopping)
	v.drain(doors, false)
	return err
}

// service is what serves, apart from its listeners.
type service struct {
	settings settings
	environ  []string // that they are from
	log      *slog.Logger
	registry *prometheus.Registry
	upstream *upstream.Client
	bridge   *bridge.Bridge
	pair     *certificate // nil without TLS
}

func newService(s settings, environ []string, log *slog.Logger, keeper bridge.Keeper) (*service, error) {
	v := &service{settings: s, environ: environ, log: log, registry: prometheus.NewRegistry()}
	v.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	var err error
	if v.upstream, err = upstream.New(s.Backend, s.Process.Node, v.registry, nil); err != nil {
		return nil, fmt.Errorf("the backend's client: %w", err)
	}
	if v.bridge, err = bridge.New(s.Bridge, s.Rate, v.upstream, log, v.registry, keeper); err != nil {
		v.upstream.Close()
		return nil, fmt.Errorf("WSBRIDGE_STATE_DIR: %w", err)
	}
	if s.Process.TLSCert != "" {
		if v.pair, err = newCertificate(s.Process.TLSCert, s.Process.TLSKey, log); err != nil {
			v.upstream.Close()
			return nil, fmt.Errorf("WSBRIDGE_TLS_CERT and WSBRIDGE_TLS_KEY: %w", err)
		}
	}
	return v, nil
}

func (v *service) close() { v.upstream.Close() }

// doors are a service's servers on their listeners.
type doors struct {
	clients, pushes net.Listener
	accepted        *bridge.Clients
	pushers         *bridge.Pushers
	failed          chan error // one for each server, so that neither waits
	serving         sync.WaitGroup
	opening         sync.WaitGroup // connections of clients that have not been upgraded
}

// open serves on the listeners.
func (v *service) open(clients, pushes net.Listener) (*doors, error) {
	s, b := v.settings, v.bridge
	if v.pair == nil { // TLS always waits
		clients = bridge.Unpolled(clients)
	}
	// Some more sockets than connections may be open: handshakes, and clients on their way out.
	capped := &cappedListener{Listener: clients, max: int64(s.Bridge.MaxConnections) + int64(s.Bridge.MaxConnections)/32 + 16, connections: b.Upgraded}
	var inner net.Listener = capped
	if v.pair != nil {
		inner = tls.NewListener(capped, v.pair.config())
	}
	quiet := slog.NewLogLogger(v.log.Handler(), slog.LevelDebug) // net/http's own lines are about strangers' mistakes
	// The timeouts are those of whoever is not upgraded: taking the socket over lifts them.
	clientServer := &http.Server{
		Handler: b, ReadTimeout: s.Bridge.HandshakeTimeout, WriteTimeout: s.Bridge.HandshakeTimeout + s.Bridge.WriteTimeout,
		MaxHeaderBytes: maxHeader, ErrorLog: quiet,
	}
	d := &doors{
		clients: clients, pushes: pushes, accepted: b.Clients(clientServer),
		pushers: b.Pushers(&http.Server{
			Handler:           b.Push(promhttp.HandlerFor(v.registry, promhttp.HandlerOpts{Registry: v.registry}), livePage(s, v.environ)),
			ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: maxHeader, ErrorLog: quiet,
		}),
		failed: make(chan error, 2),
	}
	clientServer.ConnState = func(c net.Conn, state http.ConnState) {
		capped.track(c, state)
		switch state {
		case http.StateNew:
			d.opening.Add(1)
		case http.StateClosed, http.StateHijacked:
			d.opening.Done()
		}
	}
	clientServer.SetKeepAlivesEnabled(false) // who doesn't upgrade has nothing more to ask
	d.serving.Go(func() { d.failed <- d.pushers.Serve(pushes) })
	d.serving.Go(func() { d.failed <- d.accepted.Serve(inner) })
	b.Serving()
	return d, nil
}

// drain ends the connections, and then the servers.
func (v *service) drain(d *doors, restarting bool) {
	d.clients.Close()
	start := time.Now()
	lost := v.bridge.Drain(v.settings.Process.DrainTimeout, restarting)
	d.close()
	v.log.Info("stopped", "seconds", time.Since(start).Seconds(), "disconnect_events_lost", lost)
}

// close ends the servers. The backend's last pushes get their answers, and so do clients that were accepted just before the end; what is slow to read or to ask does not
// hold it up. The listener for clients is closed.
func (d *doors) close() {
	stopping, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	d.pushes.Close()
	d.pushers.Shutdown(stopping)
	d.serving.Wait() // whoever was accepted just now is known behind that
	go func() {
		d.opening.Wait() // the server's own Shutdown drops those whose request it has not read
		cancel()
	}()
	<-stopping.Done()
	d.accepted.Close()
}
