//! How the desktop's programs are started: flags, settings and policies that make a plain, safe browser.
//!
//! Chromium keeps its sandbox. Nothing here marks it as automated and nothing can debug it: identity providers would
//! rightly refuse such a browser.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{PermissionsExt, chown, lchown},
    path::Path,
};

use polydev_core::guest::{BROWSER_FLAGS, BROWSER_USER, DESKTOP_PATH, DISPLAY, RUN_DIR, VNC_SOCKET};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::process::base_env;

/// Private to the browser's account: sockets, settings, the display's key.
const PLACE: &str = "/run/polydev/desktop";
const PROFILE: &str = "/run/polydev/desktop/profile";
const AUTHORITY: &str = "/run/polydev/desktop/xauthority";
const OPENBOX_SETTINGS: &str = "/run/polydev/desktop/openbox.xml";
const POLICIES: &str = "/etc/chromium/policies/managed/polydev.json";
/// In the profile: the running browser's socket and, as a link into nowhere, who runs it.
const SOCKET: &str = "SingletonSocket";
const LOCK: &str = "SingletonLock";
/// More than any answer on that socket.
const ANSWER_MAX: u64 = 64;
/// The X server's own socket.
pub(crate) const X_SOCKET: &str = "/tmp/.X11-unix/X1";

/// Every window fills the screen; pop-ups keep a frame, so that a person can close them. No menus, no shortcuts.
const OPENBOX: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<openbox_config xmlns="http://openbox.org/3.4/rc">
  <focus><focusNew>yes</focusNew></focus>
  <desktops><number>1</number></desktops>
  <keyboard/>
  <mouse>
    <context name="Titlebar"><mousebind button="Left" action="Drag"><action name="Move"/></mousebind></context>
    <context name="Close"><mousebind button="Left" action="Click"><action name="Close"/></mousebind></context>
    <context name="Client"><mousebind button="Left" action="Press"><action name="Focus"/><action name="Raise"/></mousebind></context>
  </mouse>
  <applications>
    <application role="browser" type="normal"><decor>no</decor><maximized>yes</maximized></application>
  </applications>
</openbox_config>
"#;

/// Makes everything that the desktop's programs expect to find.
pub(crate) fn prepare() -> io::Result<()> {
    let private = |path: &str| {
        fs::create_dir_all(path)?;
        give(path, 0o700)
    };
    fs::create_dir_all(RUN_DIR)?;
    if !Path::new(BROWSER_USER.home).exists() {
        fs::create_dir_all(BROWSER_USER.home)?;
        give(BROWSER_USER.home, 0o700)?;
    }
    private(PLACE)?;
    fs::create_dir_all("/tmp/.X11-unix")?;
    fs::set_permissions("/tmp/.X11-unix", fs::Permissions::from_mode(0o1777))?;
    fs::write(OPENBOX_SETTINGS, OPENBOX)?;
    give(OPENBOX_SETTINGS, 0o600)?;
    fs::write(AUTHORITY, authority(&random_key()?))?;
    give(AUTHORITY, 0o600)?;
    if let Some(directory) = Path::new(POLICIES).parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(POLICIES, policies())
}

/// An empty profile for every start of the browser, so that nothing of a crashed one shows or stands in the way.
pub(crate) fn fresh_profile() -> io::Result<()> {
    match fs::remove_dir_all(PROFILE) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir_all(PROFILE)?;
    give(PROFILE, 0o700)
}

/// Gives the browser that runs a command line, as a second start of it would: the profile's lock is a socket which takes
/// "START", the working directory and the arguments, each ended by a zero byte, and answers "ACK" or "SHUTDOWN"
/// (Chromium: chrome/browser/process_singleton_posix.cc). A second start costs an emulated machine half a minute.
pub(crate) async fn tell_running(argv: &[String]) -> io::Result<()> {
    tell(&Path::new(PROFILE).join(SOCKET), argv).await
}

async fn tell(socket: &Path, argv: &[String]) -> io::Result<()> {
    let mut browser = UnixStream::connect(socket).await?;
    let mut words = vec!["START", BROWSER_USER.home];
    words.extend(argv.iter().map(String::as_str));
    browser.write_all(words.join("\0").as_bytes()).await?;
    // It reads to the end.
    browser.shutdown().await?;
    let mut answer = Vec::new();
    (&mut browser).take(ANSWER_MAX).read_to_end(&mut answer).await?;
    if answer == b"ACK" { Ok(()) } else { Err(io::Error::other("it did not accept a page")) }
}

/// Puts the machine's new name into the lock of the profile: a browser that finds another one there takes the profile
/// for one in use on another machine.
pub(crate) fn rename_lock(hostname: &str) -> io::Result<()> {
    rename_lock_in(Path::new(PROFILE), hostname)
}

fn rename_lock_in(profile: &Path, hostname: &str) -> io::Result<()> {
    let lock = profile.join(LOCK);
    let owner = match fs::read_link(&lock) {
        Ok(owner) => owner,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    // `<host name>-<process>`
    let Some((_, process)) = owner.to_str().and_then(|owner| owner.rsplit_once('-')) else { return Ok(()) };
    let new = profile.join("PolydevLock");
    std::os::unix::fs::symlink(format!("{hostname}-{process}"), &new)?;
    lchown(&new, Some(BROWSER_USER.uid), Some(BROWSER_USER.gid))?;
    fs::rename(new, lock)
}

pub(crate) fn environment() -> BTreeMap<String, String> {
    let mut env = base_env(&BROWSER_USER);
    // Characters arrive composed. GTK's own input method would take some of them for keys that begin a composition: it
    // compares only 16 bits of a keysym.
    let method = ("GTK_IM_MODULE", "gtk-im-context-none");
    for (name, value) in [("DISPLAY", DISPLAY), ("XAUTHORITY", AUTHORITY), ("XDG_RUNTIME_DIR", PLACE), method]
    {
        env.insert(name.to_owned(), value.to_owned());
    }
    env
}

pub(crate) fn x_server(width: u16, height: u16) -> Vec<String> {
    let geometry = format!("{width}x{height}");
    owned(&[
        "Xtigervnc",
        DISPLAY,
        "-geometry",
        &geometry,
        "-depth",
        "24",
        "-auth",
        AUTHORITY,
        "-nolisten",
        "tcp",
        // Its key comes from the template, so it is no secret among clones: the one socket is for one account only.
        "-nolisten",
        "local",
        "-rfbport",
        "-1",
        "-rfbunixpath",
        VNC_SOCKET,
        "-rfbunixmode",
        "0600",
        "-SecurityTypes",
        "None",
        "-AlwaysShared",
        "-AcceptSetDesktopSize=1",
        // Clipboard texts go by the desktop program, under the controller's policy.
        "-AcceptCutText=0",
        "-SendCutText=0",
        "-desktop",
        "polydev",
        // Viewers repeat held keys themselves. A slow machine learns late that a key was let go, and would repeat what
        // was pressed once.
        "-ardelay",
        "600000",
    ])
}

/// Lets nobody but the browser's account near the display, key or not.
pub(crate) fn close_display_to_others() -> io::Result<()> {
    fs::set_permissions(X_SOCKET, fs::Permissions::from_mode(0o700))
}

pub(crate) fn window_manager() -> Vec<String> {
    owned(&["openbox", "--config-file", OPENBOX_SETTINGS, "--sm-disable"])
}

/// The desktop program in one of its roles: `watch` tells what the screen shows, `stream` sends it and takes input.
pub(crate) fn desktop_program(role: &str) -> Vec<String> {
    owned(&[DESKTOP_PATH, role])
}

/// The browser on an empty page, or, given an address, the call that makes the running one open it.
pub(crate) fn chromium(url: Option<&str>) -> Vec<String> {
    let profile = format!("--user-data-dir={PROFILE}");
    let page = url.unwrap_or("about:blank");
    owned(&[&["chromium", profile.as_str()], &BROWSER_FLAGS[..], &[page]].concat())
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// No bubbles, no stores, no way to the machine's files; everything unneeded is off.
fn policies() -> String {
    json!({
        "AutofillAddressEnabled": false,
        "AutofillCreditCardEnabled": false,
        "AudioCaptureAllowed": false,
        "BackgroundModeEnabled": false,
        "BookmarkBarEnabled": false,
        "BrowserSignin": 0,
        "DefaultBrowserSettingEnabled": false,
        "DefaultGeolocationSetting": 2,
        "DefaultNotificationsSetting": 2,
        "DeveloperToolsAvailability": 2,
        "DnsOverHttpsMode": "off",
        "DownloadRestrictions": 3,
        "EnableMediaRouter": false,
        "ExtensionInstallBlocklist": ["*"],
        "MetricsReportingEnabled": false,
        "PasswordLeakDetectionEnabled": false,
        "PasswordManagerEnabled": false,
        "PrintingEnabled": false,
        "PromotionsEnabled": false,
        "QuicAllowed": false,
        "SearchSuggestEnabled": false,
        "ShowHomeButton": false,
        "SpellCheckServiceEnabled": false,
        "SyncDisabled": true,
        "TranslateEnabled": false,
        "URLBlocklist": ["file://*"],
        "UrlKeyedAnonymizedDataCollectionEnabled": false,
        "VideoCaptureAllowed": false
    })
    .to_string()
}

fn give(path: &str, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    chown(path, Some(BROWSER_USER.uid), Some(BROWSER_USER.gid))
}

fn random_key() -> io::Result<[u8; 16]> {
    let mut key = [0; 16];
    io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut key)?;
    Ok(key)
}

/// One entry of an Xauthority file (Xau manual): any address, display 1.
fn authority(key: &[u8; 16]) -> Vec<u8> {
    let number = DISPLAY.trim_start_matches(':').as_bytes();
    let mut entry = vec![0xff, 0xff];
    for field in [&[][..], number, b"MIT-MAGIC-COOKIE-1", key] {
        entry.extend_from_slice(&u16::try_from(field.len()).unwrap_or(0).to_be_bytes());
        entry.extend_from_slice(field);
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_browser_keeps_its_sandbox_and_cannot_be_debugged() {
        let flags = chromium(None).join(" ");
        for forbidden in [
            "sandbox",
            "remote-debugging",
            "automation",
            "ignore-certificate",
            "disable-web-security",
            "headless",
        ] {
            assert!(!flags.contains(forbidden), "{forbidden} in {flags}");
        }
        assert!(flags.ends_with(" about:blank"));
        assert_eq!(chromium(Some("https://a.test/")).last().unwrap(), "https://a.test/");
    }

    #[test]
    fn the_authority_entry_has_the_documented_layout() {
        let entry = authority(&[7; 16]);
        let expected = [&b"\xff\xff\0\0\0\x011\0\x12MIT-MAGIC-COOKIE-1\0\x10"[..], &[7; 16]].concat();
        assert_eq!(entry, expected);
    }

    #[test]
    fn the_profiles_lock_takes_the_machines_new_name() {
        let profile = tempfile::tempdir().unwrap();
        rename_lock_in(profile.path(), "no-lock-yet").unwrap();
        let lock = profile.path().join(LOCK);
        std::os::unix::fs::symlink("polydev-old-94", &lock).unwrap();
        rename_lock_in(profile.path(), "polydev-new").unwrap();
        assert_eq!(fs::read_link(&lock).unwrap(), Path::new("polydev-new-94"));
        assert_eq!(fs::read_dir(profile.path()).unwrap().count(), 1);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_running_browser_is_told_what_a_second_start_would_tell_it() {
        let place = tempfile::tempdir().unwrap();
        let socket = place.path().join(SOCKET);
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let browser = async |answer: &[u8]| {
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut asked = String::new();
            peer.read_to_string(&mut asked).await.unwrap();
            peer.write_all(answer).await.unwrap();
            asked
        };
        let argv = ["chromium".to_owned(), "https://a.test/".to_owned()];
        let (told, asked) = tokio::join!(tell(&socket, &argv), browser(b"ACK"));
        told.unwrap();
        assert_eq!(asked, "START\0/home/browser\0chromium\0https://a.test/");
        let (told, _) = tokio::join!(tell(&socket, &argv), browser(b"SHUTDOWN"));
        told.unwrap_err();
    }
}
