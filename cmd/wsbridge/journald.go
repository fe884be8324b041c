package main

import (
	"context"
	"io"
	"log/slog"
	"sync"
)

// journalHandler writes for journald, which takes the priority of a line from its beginning (sd-daemon(3)): `journalctl -p warning` finds what somebody has to look at.
type journalHandler struct {
	levels [4]slog.Handler // debug, info, warning, error
}

// forJournald returns a handler that makes each line with one of those that the function returns.
func forJournald(w io.Writer, handler func(io.Writer) slog.Handler) slog.Handler {
	var h journalHandler
	var line sync.Mutex
	for i, priority := range [...]string{"<7>", "<6>", "<4>", "<3>"} {
		h.levels[i] = handler(&priorityWriter{line: &line, to: w, priority: priority})
	}
	return h
}

// of returns the handler for a level.
func (h journalHandler) of(level slog.Level) slog.Handler {
	return h.levels[max(0, min(3, (int(level)-int(slog.LevelDebug))/4))]
}

// Enabled reports whether the level is logged.
func (h journalHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.of(level).Enabled(ctx, level)
}

// Handle writes a line.
func (h journalHandler) Handle(ctx context.Context, r slog.Record) error {
	return h.of(r.Level).Handle(ctx, r)
}

// WithAttrs returns a handler whose lines have these attributes as well.
func (h journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	for i, handler := range h.levels {
		h.levels[i] = handler.WithAttrs(attrs)
	}
	return h
}

// WithGroup returns a handler whose lines have what follows in a group.
func (h journalHandler) WithGroup(name string) slog.Handler {
	for i, handler := range h.levels {
		h.levels[i] = handler.WithGroup(name)
	}
	return h
}

// priorityWriter writes lines with a priority before each.
type priorityWriter struct {
	line     *sync.Mutex // guards what follows, for all priorities
	to       io.Writer
	priority string
	buffer   []byte
}

// Write writes one line.
func (w *priorityWriter) Write(p []byte) (int, error) {
	w.line.Lock()
	defer w.line.Unlock()
	w.buffer = append(append(w.buffer[:0], w.priority...), p...)
	if n, err := w.to.Write(w.buffer); err != nil {
		return max(0, n-len(w.priority)), err
	}
	return len(p), nil
}
