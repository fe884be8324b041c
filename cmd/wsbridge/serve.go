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
	"sync"
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
func serveEnvironment(ctx context.Context, environ []string, stderr io.Writer) error {
	s, faults := parse(environ)
	if len(faults) > 0 {
		return errors.Join(faultsAsErrors(faults)...)
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
	return serve(ctx, s, newLogger(s, stderr), clients, pushes)
}

func newLogger(s settings, w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: s.Process.LogLevel}
	if s.Process.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// serve runs the program on two listeners, which it closes, until ctx ends. Then it drains: no new clients, connections closed one by
// one, disconnect events delivered; pushes are taken until the last client has gone.
func serve(ctx context.Context, s settings, log *slog.Logger, clients, pushes net.Listener) error {
	defer clients.Close()
	defer pushes.Close()
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	client, err := upstream.New(s.Backend, s.Process.Node, registry, nil)
	if err != nil {
		return fmt.Errorf("the backend's client: %w", err)
	}
	defer client.Close()
	b, err := bridge.New(s.Bridge, s.Rate, client, log, registry, nil)
	if err != nil {
		return fmt.Errorf("WSBRIDGE_STATE_DIR: %w", err)
	}
	// Some more sockets than connections may be open: handshakes, and clients on their way out.
	capped := &cappedListener{Listener: clients, max: int64(s.Bridge.MaxConnections) + int64(s.Bridge.MaxConnections)/32 + 16, connections: b.Upgraded}
	var inner net.Listener = capped
	if s.Process.TLSCert != "" {
		pair, err := newCertificate(s.Process.TLSCert, s.Process.TLSKey, log)
		if err != nil {
			return fmt.Errorf("WSBRIDGE_TLS_CERT and WSBRIDGE_TLS_KEY: %w", err)
		}
		inner = tls.NewListener(capped, pair.config())
	}
	quiet := slog.NewLogLogger(log.Handler(), slog.LevelDebug) // net/http's own lines are about strangers' mistakes
	// The timeouts are those of whoever is not upgraded: taking the socket over lifts them.
	clientServer := &http.Server{
		Handler: b, ReadTimeout: s.Bridge.HandshakeTimeout, WriteTimeout: s.Bridge.HandshakeTimeout + s.Bridge.WriteTimeout,
		MaxHeaderBytes: maxHeader, ErrorLog: quiet, ConnState: capped.track,
	}
	clientServer.SetKeepAlivesEnabled(false) // who doesn't upgrade has nothing more to ask
	pushServer := &http.Server{
		Handler:           b.Push(promhttp.HandlerFor(registry, promhttp.HandlerOpts{Registry: registry})),
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: maxHeader, ErrorLog: quiet,
	}

	failed := make(chan error, 2) // one for each server, so that neither waits
	var servers sync.WaitGroup
	servers.Go(func() { failed <- pushServer.Serve(pushes) })
	servers.Go(func() { failed <- clientServer.Serve(inner) })
	b.Serving()
	log.Info("serving", "listen", clients.Addr().String(), "push_listen", pushes.Addr().String(), "backend", s.Backend.URL.String(), "version", version())
	daemon.SdNotify(false, daemon.SdNotifyReady) // without systemd it does nothing

	select {
	case err = <-failed:
		err = fmt.Errorf("a listener failed: %w", err)
	case <-ctx.Done():
		log.Info("draining", "cause", context.Cause(ctx).Error(), "timeout", s.Process.DrainTimeout.String())
	}
	daemon.SdNotify(false, daemon.SdNotifyStopping)
	clients.Close()
	start := time.Now()
	lost := b.Drain(s.Process.DrainTimeout)
	// The backend's last pushes get their answers; a listing that is slow to read does not hold up the end.
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if pushServer.Shutdown(stopping) != nil {
		pushServer.Close()
	}
	clientServer.Close()
	servers.Wait()
	log.Info("stopped", "seconds", time.Since(start).Seconds(), "disconnect_events_lost", lost)
	return err
}
