package main

import (
	"crypto/tls"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certificate is the pair that clients see. It is read again when its files change, so that a renewal needs no restart.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu      sync.Mutex // guards the following fields
	pair    *tls.Certificate
	files   [2]os.FileInfo // as they were before they were last read; nil: there was none
	checked time.Time
}

// newCertificate reads the pair for the first time.
func newCertificate(certFile, keyFile string, log *slog.Logger) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log, checked: time.Now()}
	c.files = c.stat()
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	c.pair = &pair
	return c, nil
}

// config returns what a listener for clients needs. gorilla upgrades HTTP/1.1 only, so nothing else is offered.
func (c *certificate) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, GetCertificate: c.GetCertificate}
}

// GetCertificate returns the pair for one handshake. At most once a second it looks whether the files have changed. A pair that
// doesn't load is logged once, and the one before stays: a renewal writes two files, so the first look may fall between them.
func (c *certificate) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.checked) < time.Second {
		return c.pair, nil
	}
	c.checked = time.Now()
	files := c.stat() // before reading, so that a change meanwhile is seen by the next look
	if same(files[0], c.files[0]) && same(files[1], c.files[1]) {
		return c.pair, nil
	}
	c.files = files
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		c.log.Warn("the TLS certificate has changed and does not load; the one before stays in use", "error", err)
		return c.pair, nil
	}
	c.pair = &pair
	return c.pair, nil
}

func (c *certificate) stat() [2]os.FileInfo {
	cert, _ := os.Stat(c.certFile)
	key, _ := os.Stat(c.keyFile)
	return [2]os.FileInfo{cert, key}
}

func same(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == b
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}
