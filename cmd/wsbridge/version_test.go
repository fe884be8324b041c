package main

import (
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
)

func TestTheVersionIsOneLineThatSaysWhatWasBuilt(t *testing.T) {
	t.Parallel()
	platform := " " + runtime.GOOS + "/" + runtime.GOARCH
	for _, row := range []struct {
		info debug.BuildInfo
		want string
	}{
		{debug.BuildInfo{GoVersion: "go1.26.8", Main: debug.Module{Version: "v1.2.3"}}, "wsbridge v1.2.3, go1.26.8" + platform},
		{debug.BuildInfo{GoVersion: "go1.26.8"}, "wsbridge (devel), go1.26.8" + platform},
		{debug.BuildInfo{GoVersion: "go1.26.8", Main: debug.Module{Version: "v1.2.3"}, Settings: []debug.BuildSetting{
			{Key: "vcs.revision", Value: "0a1b2c"}, {Key: "vcs.modified", Value: "false"}}}, "wsbridge v1.2.3, revision 0a1b2c, go1.26.8" + platform},
		{debug.BuildInfo{GoVersion: "go1.26.8", Settings: []debug.BuildSetting{
			{Key: "vcs.modified", Value: "true"}, {Key: "vcs.revision", Value: "0a1b2c"}}}, "wsbridge (devel), revision 0a1b2c with changes, go1.26.8" + platform},
	} {
		if got := describe(&row.info); got != row.want {
			t.Errorf("describe(%+v) = %q, want %q", row.info, got, row.want)
		}
	}
	if got := version(); !strings.HasPrefix(got, "wsbridge ") || !strings.Contains(got, runtime.Version()) || strings.Contains(got, "\n") {
		t.Errorf("version() = %q, want one line with %s", got, runtime.Version())
	}
}
