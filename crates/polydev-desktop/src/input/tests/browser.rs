//! A real Chromium whose page tells the test what was typed into it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use serde::Deserialize;
use tempfile::TempDir;

use super::{
    super::Display,
    LIMIT,
    server::{Program, Server},
};

/// A key that is not seen for so long is pressed again.
const RETRY: Duration = Duration::from_millis(500);

/// One report is on its way at a time; a change since then is told by the next one. The number a `/wish` answers with is
/// the round: a new one empties the field.
const PAGE: &str = r#"<!doctype html><meta charset="utf-8"><title>typed</title>
<textarea id="area" autofocus autocomplete="off" spellcheck="false" style="width:95vw;height:80vh"></textarea>
<script>
let round = 0, keys = [], dirty = true, busy = false;
const area = document.getElementById("area");
async function tell() {
  dirty = true;
  if (busy) return;
  busy = true;
  while (dirty) {
    dirty = false;
    const focus = document.hasFocus() && document.activeElement === area;
    const selected = area.selectionEnd - area.selectionStart;
    const body = JSON.stringify({ round, value: area.value, keys, focus, selected });
    await fetch("/told", { method: "POST", body });
  }
  busy = false;
}
area.addEventListener("keydown", (e) => {
  const mods = (e.ctrlKey ? "C" : "") + (e.altKey ? "A" : "") + (e.shiftKey ? "S" : "") + (e.metaKey ? "M" : "");
  keys.push(`${mods}:${e.key}:${e.repeat ? "again" : "new"}`);
});
area.addEventListener("input", tell);
area.addEventListener("keyup", tell);
area.addEventListener("focus", tell);
window.addEventListener("focus", tell);
document.addEventListener("selectionchange", tell);
(async () => {
  tell();
  for (;;) {
    round = Number(await (await fetch("/wish?" + round)).text());
    area.value = ""; keys = [];
    tell();
  }
})();
</script>"#;

/// What the page told last.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Told {
    round: u32,
    pub(super) value: String,
    /// Modifiers, key, and whether it repeats, of each key that went down.
    pub(super) keys: Vec<String>,
    focus: bool,
    pub(super) selected: usize,
}

#[derive(Default)]
struct State {
    told: Told,
    wish: u32,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// What is typed into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Area,
    /// Chromium gives it another input method than the area.
    Password,
}

/// A browser with the page in it and the focus in the page's field.
pub(super) struct Browser {
    shared: Arc<Shared>,
    _programs: [Program; 2],
    _profile: TempDir,
}

impl Browser {
    /// `None`, with a line that says so, if a program is missing.
    pub(super) fn start(server: &Server, field: Field) -> Option<Self> {
        let shared = Arc::new(Shared::default());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let served = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = served.clone();
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        let quiet = |command: &mut Command| {
            let command = command.env("DISPLAY", &server.display).stdin(Stdio::null());
            Program::start(command.stdout(Stdio::null()).stderr(Stdio::null()))
        };
        let manager = quiet(Command::new("openbox").arg("--sm-disable"))?;
        let profile = tempfile::tempdir().unwrap();
        let arguments = "--no-sandbox --test-type --no-first-run --no-default-browser-check --disable-gpu \
            --disable-dev-shm-usage --disable-extensions --disable-background-networking --disable-sync \
            --disable-component-update --password-store=basic --start-maximized --window-position=0,0";
        let data = format!("--user-data-dir={}", profile.path().display());
        let mut command = Command::new("chromium");
        let chromium = quiet(
            command.args(arguments.split_whitespace()).arg(data).arg(format!("http://{address}/{field:?}")),
        )?;
        let browser = Self { shared, _programs: [chromium, manager], _profile: profile };
        browser.wait("the page has the focus", |told| told.focus);
        // It says so before the X server gives it the keyboard.
        server.connect().wait_for_focus();
        browser.wait_for_keys(&server.display);
        Some(browser)
    }

    /// Chromium drops keys until a new page was painted.
    fn wait_for_keys(&self, display: &str) {
        const A: u8 = 38;
        const B: u8 = 56;
        let display = Display::open(Some(display)).unwrap();
        let tap = |keycode| {
            display.key(keycode, true).unwrap();
            display.key(keycode, false).unwrap();
            display.sync().unwrap();
        };
        let end = Instant::now() + LIMIT;
        while self.wait_within(RETRY, &|told| !told.value.is_empty()).is_err() {
            assert!(Instant::now() < end, "the page takes no keys");
            tap(A);
        }
        // After this one none of the others is still on its way.
        tap(B);
        self.wait("the last of the first keys", |told| told.value.ends_with('b'));
        self.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    /// Empties the field.
    pub(super) fn clear(&self) {
        let round = {
            let mut state = self.lock();
            state.wish += 1;
            self.shared.changed.notify_all();
            state.wish
        };
        self.wait("the field is empty", |told| told.round == round && told.value.is_empty());
    }

    /// Waits until the page told what is wanted.
    pub(super) fn wait(&self, what: &str, wanted: impl Fn(&Told) -> bool) -> Told {
        self.wait_within(LIMIT, &wanted).unwrap_or_else(|told| panic!("no end to: {what}; last: {told:?}"))
    }

    /// Waits until exactly this is in the field.
    pub(super) fn expect(&self, text: &str) {
        let Err(told) = self.wait_within(LIMIT, &|told| told.value == text) else { return };
        let wrong = text.chars().zip(told.value.chars()).position(|(one, other)| one != other);
        let place = wrong.unwrap_or(text.chars().count().min(told.value.chars().count()));
        let around = |text: &str| text.chars().skip(place.saturating_sub(3)).take(12).collect::<String>();
        panic!(
            "character {place} of {} ({} came): {:?} is {:?}",
            text.chars().count(),
            told.value.chars().count(),
            around(text),
            around(&told.value)
        );
    }

    fn wait_within(&self, limit: Duration, wanted: &impl Fn(&Told) -> bool) -> Result<Told, Told> {
        let end = Instant::now() + limit;
        let mut state = self.lock();
        while !wanted(&state.told) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(state.told.clone());
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
        Ok(state.told.clone())
    }
}

/// Answers one request.
fn serve(stream: TcpStream, shared: &Shared) {
    let mut reader = BufReader::new(&stream);
    let mut first = String::new();
    let (mut length, mut line) = (0, String::new());
    let _ = reader.read_line(&mut first);
    while reader.read_line(&mut line).is_ok_and(|count| count > 2) {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    let body = if first.starts_with("POST /told") {
        let mut told = vec![0; length];
        if reader.read_exact(&mut told).is_err() {
            return;
        }
        shared.state.lock().unwrap().told = serde_json::from_slice(&told).unwrap();
        shared.changed.notify_all();
        String::new()
    } else if let Some(round) = first.strip_prefix("GET /wish?") {
        let known: u32 = round.split(' ').next().unwrap().parse().unwrap();
        let state = shared.state.lock().unwrap();
        let Ok((state, waited)) =
            shared.changed.wait_timeout_while(state, 4 * LIMIT, |state| state.wish == known)
        else {
            return;
        };
        if waited.timed_out() {
            return;
        }
        state.wish.to_string()
    } else if first.contains("Password") {
        PAGE.replace("<textarea", "<input type=password").replace("</textarea>", "")
    } else {
        PAGE.to_owned()
    };
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nConnection: close\r\nContent-Length:";
    let _ = write!(&stream, "{head} {}\r\n\r\n{body}", body.len());
}
