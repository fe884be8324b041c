package main

import (
	"io"
	"log/slog"
	"sync"
	"time"
)

// talkative is for how long SIGUSR1 makes the log say all there is to say.
const talkative = 10 * time.Minute

// logLevel is the least level that is logged. It can be lowered for a while, without a restart.
type logLevel struct {
	slog.LevelVar
	usual slog.Level
	mu    sync.Mutex  // guards the following
	back  *time.Timer // ends the while; nil: there is none
}

// newLogger returns a logger as the settings have it, and its level.
func newLogger(s settings, w io.Writer) (*slog.Logger, *logLevel) {
	level := &logLevel{usual: s.Process.LogLevel}
	level.Set(level.usual)
	options := &slog.HandlerOptions{Level: level}
	handler := func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, options) }
	if s.Process.LogFormat == "json" {
		handler = func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, options) }
	}
	if toJournald(w) {
		return slog.New(forJournald(w, handler)), level
	}
	return slog.New(handler(w)), level
}

// toggle lowers the level for a while, or ends that.
func (l *logLevel) toggle(log *slog.Logger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.back != nil {
		l.back.Stop()
		l.back = nil
		l.Set(min(l.usual, slog.LevelInfo)) // of which the next line is
		log.Info("the log's level is the usual one again")
		l.Set(l.usual)
		return
	}
	l.Set(slog.LevelDebug)
	log.Info("everything is logged for a while (SIGUSR1 again ends it)", "minutes", talkative.Minutes())
	l.back = time.AfterFunc(talkative, func() { l.toggle(log) })
}
