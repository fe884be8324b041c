package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"wsbridge/holder"
)

// holdDemo runs the sidecar as it is in earnest: this process holds the connections, and another one serves.
func holdDemo(ctx context.Context, settings []string, clients, pushes net.Listener, stderr io.Writer) error {
	path, err := os.Executable()
	if err != nil {
		return err
	}
	errs, done, err := fileFor(stderr)
	if err != nil {
		return err
	}
	defer done()
	config := holder.Config{
		Path: path, Args: []string{"wsbridge", workerCommand}, Environ: settings, Stderr: errs, Slots: 10_000,
		Log:      slog.New(slog.DiscardHandler), // the page says when a worker dies
		Patience: 30 * time.Second, Spare: true,
	}
	for _, name := range []string{"GORACE", "TMPDIR"} {
		if value, ok := os.LookupEnv(name); ok {
			config.Environ = append(config.Environ, name+"="+value)
		}
	}
	for _, l := range []net.Listener{clients, pushes} {
		file, err := l.(*net.TCPListener).File()
		if err != nil {
			return err
		}
		defer file.Close()
		config.Listeners = append(config.Listeners, holder.Listener{Address: l.Addr().String(), File: file})
		l.Close() // the socket stays: it is the holder's
	}
	exit, err := holder.Run(ctx, config)
	if err == nil && exit != 0 {
		err = exited(exit)
	}
	return err
}

// death is what has become of a worker that was killed.
type death struct {
	Worker       int     `json:"worker"`
	Next         int     `json:"next"`
	Milliseconds float64 `json:"milliseconds"` // until that one served
	Connections  int     `json:"connections"`  // that it went on with
}

// deathTime is how long a worker may take to be succeeded.
const deathTime = 10 * time.Second

// mortal lets the visitor kill the worker. GET says which one serves.
type mortal struct{ seen *trace }

func (m mortal) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), deathTime)
	defer cancel()
	status, err := holder.Status(ctx, os.Getpid())
	if err != nil || status.Worker == 0 {
		http.Error(w, "No worker serves at this moment.", http.StatusConflict)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	switch r.Method {
	case http.MethodGet:
		json.NewEncoder(w).Encode(death{Worker: status.Worker, Connections: status.Connections})
	case http.MethodDelete:
		d, err := kill(ctx, status)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		m.seen.add(traced{Kind: "death", Death: &d})
		json.NewEncoder(w).Encode(d)
	default:
		w.Header().Set("Allow", strings.Join([]string{http.MethodGet, http.MethodDelete}, ", "))
		http.Error(w, "The worker can be looked at and killed.", http.StatusMethodNotAllowed)
	}
}

// kill kills the worker, and returns when another serves.
func kill(ctx context.Context, before holder.StatusReport) (death, error) {
	process, err := os.FindProcess(before.Worker)
	if err == nil {
		err = process.Kill()
	}
	if err != nil {
		return death{}, fmt.Errorf("worker %d can't be killed: %w", before.Worker, err)
	}
	began := time.Now()
	for {
		status, err := holder.Status(ctx, os.Getpid())
		if err != nil {
			return death{}, fmt.Errorf("worker %d has no successor: %w", before.Worker, err)
		}
		if status.Worker != 0 && status.Worker != before.Worker {
			return death{before.Worker, status.Worker, since(began), status.Connections}, nil
		}
		time.Sleep(time.Millisecond)
	}
}
