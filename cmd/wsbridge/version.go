package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// version returns what this binary was made of, in one line.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "wsbridge (unknown version) " + runtime.Version()
	}
	return describe(info)
}

func describe(info *debug.BuildInfo) string {
	version, revision, changed := info.Main.Version, "", ""
	if version == "" {
		version = "(devel)" // what Go calls a build of a working tree
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = ", revision " + s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			changed = " with changes"
		}
	}
	return fmt.Sprintf("wsbridge %s%s%s, %s %s/%s", version, revision, changed, info.GoVersion, runtime.GOOS, runtime.GOARCH)
}
