package upstream

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
)

// maxTraceState bounds a tracestate that is passed on, in bytes: what the specification asks to be kept at least.
const maxTraceState = 512

// validTrace reports whether a traceparent can be continued (W3C Trace Context, 3.2.2): lower-case hex, no all-zero ids, a version
// that is not ff.
func validTrace(parent string) bool {
	if len(parent) < 55 || parent[2] != '-' || parent[35] != '-' || parent[52] != '-' {
		return false
	}
	version, trace, span, flags := parent[:2], parent[3:35], parent[36:52], parent[53:55]
	if version == "ff" || version == "00" && len(parent) != 55 || len(parent) > 55 && parent[55] != '-' {
		return false
	}
	return lowerHex(version+trace+span+flags) && strings.Trim(trace, "0") != "" && strings.Trim(span, "0") != ""
}

func lowerHex(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'f') })
}

// continued returns the traceparent of one attempt: the same trace, a span of its own, in the version that we speak.
func continued(parent string) string {
	var span [8]byte
	rand.Read(span[:])
	span[7] |= 1 // never all zero
	return "00" + parent[2:36] + hex.EncodeToString(span[:]) + parent[52:55]
}
