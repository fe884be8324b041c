package e2e

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"golang.org/x/sys/unix"
)

// debian boots a machine that has what this one has of Debian's packages, nginx and PHP-FPM among them, and their configuration as it came.
func debian(t *testing.T) machine {
	t.Helper()
	tool(t, "nginx", "nginx-light")
	fpm := filepath.Base(phpFPM(t))
	m := boot(t)
	m.writableUsr(t)
	for _, of := range []string{"/etc/apt", "/etc/nginx", "/etc/php", "/etc/passwd", "/etc/group", "/etc/alternatives", "/etc/mime.types", "/var/lib/dpkg", "/var/lib/nginx", "/var/lib/php"} {
		if _, err := os.Stat(of); err == nil {
			if out, err := exec.Command("cp", "-a", of, m.path(filepath.Dir(of))+"/").CombinedOutput(); err != nil {
				t.Fatalf("copying %s: %v\n%s", of, err, out)
			}
		}
	}
	m.must(t, "mkdir -p /var/log/nginx /var/www/html /var/lib/apt/lists/partial /var/cache/apt/archives/partial /root && rm -f /etc/nginx/modules-enabled/* && systemd-tmpfiles --create >/dev/null 2>&1 || true")
	// nginx waits for a network, of which the machine has only the loopback.
	m.must(t, "systemctl mask --runtime systemd-networkd-wait-online.service && systemctl start nginx "+strings.Replace(fpm, "php-fpm", "php", 1)+"-fpm && test -S /run/php/php-fpm.sock")
	return m
}

// forward returns an address here that leads to one of the machine's, whose network is its own.
func (m machine) forward(t *testing.T, address string) string {
	t.Helper()
	network, err := os.Open("/proc/" + m.init + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { network.Close() })
	back := make(chan struct{})
	t.Cleanup(func() { listener.Close(); <-back })
	go func() {
		defer close(back)
		// The thread goes to the machine's network, and comes back: it must not end, for the kernel would kill the processes that were started from it (see apart).
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err == nil {
			err = unix.Setns(int(network.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil {
			t.Errorf("joining the machine's network: %v", err)
			return
		}
		defer func() {
			if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
				t.Errorf("leaving the machine's network: %v", err)
				return
			}
			home.Close()
			runtime.UnlockOSThread()
		}()
		for {
			here, err := listener.Accept()
			if err != nil {
				return
			}
			there, err := net.Dial("tcp", address)
			if err != nil {
				here.Close()
				continue
			}
			for _, way := range [][2]net.Conn{{here, there}, {there, here}} {
				go func() {
					io.Copy(way[0], way[1])
					way[0].Close()
				}()
			}
		}
	}()
	return listener.Addr().String()
}

// docs/install.md, each of its commands as it stands there, on a machine that was booted for it. Two pages of a real browser talk through what they have made.
func TestTheFiveMinutesOfTheInstallationPage(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/install.md")
	if err != nil {
		t.Fatal(err)
	}
	commands := map[string]string{} // by section
	for _, section := range strings.Split(string(text), "\n## ")[1:] {
		title, content, _ := strings.Cut(section, "\n")
		blocks := strings.Split(content, "```")
		for i := 1; i < len(blocks); i += 2 {
			block, isShell := strings.CutPrefix(blocks[i], "sh\n")
			if !isShell {
				t.Fatalf("a block of %q is no shell's: nobody tests it", title)
			}
			commands[title] += block
		}
	}

	m := debian(t)
	m.install(t, "/root/wsbridge_1.0_all.deb", "0644", strings.NewReader(string(makePackage(t, runtime.GOARCH, "1.0"))))
	do := func(title string) string {
		t.Helper()
		script, known := commands[title]
		if !known {
			t.Fatalf("docs/install.md has no section %q with commands", title)
		}
		delete(commands, title)
		out, code := m.run(t, strings.NewReader("cd /root\n"+script), "sh -ex 2>&1")
		if code != 0 {
			log, _ := m.run(t, nil, "journalctl --no-pager -n 100")
			t.Fatalf("%s: exit code %d\n%s\nthe journal:\n%s", title, code, out, log)
		}
		return out
	}
	for _, title := range []string{"What it stands between", "The package", "nginx", "The application"} {
		do(title)
	}
	site := m.forward(t, "127.0.0.1:80")
	// The pages come before the pushes to them, which the same section has.
	start, push, both := strings.Cut(commands["Start"], "wsbridge connections\n")
	if !both {
		t.Fatal("docs/install.md does not list connections")
	}
	commands["Start"], commands["push"] = start, "wsbridge connections\n"+push
	if out := do("Start"); !strings.Contains(out, "Active: active (running)") {
		t.Errorf("systemctl status shows\n%s", out)
	}

	browser := startBrowser(t)
	open := func(name string) (context.Context, func()) {
		tab, cancel := chromedp.NewContext(browser, chromedp.WithNewBrowserContext())
		t.Cleanup(cancel)
		if err := chromedp.Do(tab, chromedp.Navigate("http://"+site+"/?name="+name)); err != nil {
			t.Fatal(err)
		}
		return tab, cancel
	}
	hears := func(tab context.Context, want string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(tab, patience)
		defer cancel()
		const last = `new Promise(done => { const said = document.getElementById('said'), look = () => said.lastChild?.textContent === %s && done(true); new MutationObserver(look).observe(said, { childList: true }); look() })`
		if _, err := chromedp.Run(ctx, chromedp.Evaluate[bool](strings.Replace(last, "%s", quote(want), 1), chromedp.EvalAwaitPromise)); err != nil {
			said, _ := chromedp.Run(tab, chromedp.Evaluate[string](`document.body.innerText`))
			t.Fatalf("the page does not show %q: %v; it shows:\n%s", want, err, said)
		}
	}
	says := func(tab context.Context, text string) {
		t.Helper()
		if err := chromedp.Do(tab, chromedp.SendKeys(chromedp.ID("text"), text+"\r")); err != nil {
			t.Fatal(err)
		}
	}
	ada, _ := open("ada")
	bob, closeBob := open("bob")
	hears(ada, "welcome, ada")
	hears(bob, "welcome, bob")
	says(ada, "hello, <b>Bob</b>")
	hears(ada, "ada: hello, <b>Bob</b>")
	hears(bob, "ada: hello, <b>Bob</b>")

	if out := do("push"); !strings.Contains(out, "ada") || !strings.Contains(out, "bob") {
		t.Errorf("wsbridge connections lists\n%s", out)
	}
	hears(ada, "the shop closes at six")
	hears(bob, "the shop closes at six")

	journal := m.follow(t)
	do("Change something")
	journal.awaitLine(t, "cause=reload") // what a program writes is in the journal a moment later
	says(bob, "still here?")
	hears(ada, "bob: still here?")
	says(ada, "yes")
	hears(bob, "ada: yes")
	for _, tab := range []context.Context{ada, bob} {
		if state, err := chromedp.Run(tab, chromedp.Evaluate[string](`document.getElementById('state').textContent + ' ' + [...document.querySelectorAll('#said li')].filter(said => said.textContent.startsWith('welcome')).length`)); err != nil || state != "open 1" {
			t.Errorf("a page's state is %q, %v, want open, of one connection", state, err)
		}
	}
	closeBob()
	hears(ada, "bob has left")

	do("Away again")
	if out := m.must(t, "ls /etc/wsbridge.env /usr/bin/wsbridge /var/lib/private/wsbridge 2>/dev/null || true"); out != "" {
		t.Errorf("left behind: %s", out)
	}
	for title := range commands {
		t.Errorf("nobody has run the commands of %q", title)
	}
}

// The chat of that page has the client that docs/clients.md shows.
func TestTheChatHasTheDocumentedClient(t *testing.T) {
	t.Parallel()
	_, documented := clientsPage(t)
	if script, err := os.ReadFile("../examples/chat/client.js"); err != nil || string(script) != documented {
		t.Errorf("examples/chat/client.js is not the client of docs/clients.md (%v): copy it there", err)
	}
}
