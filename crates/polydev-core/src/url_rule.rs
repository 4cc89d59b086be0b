//! Which URLs are a sign-in page: the one place where an address from a guest program becomes trusted.
//!
//! The agent applies the rules when a program hands an address to the browser shim or prints one; the controller
//! applies them again before it shows the address or lets a browser open it. Nothing that no rule accepts is followed.

use regex_lite::Regex;

use crate::wire::{CallbackRule, UrlRule, UrlSource, UrlYields};

/// Longest URL that is looked at.
pub const URL_MAX: usize = 8 << 10;

/// Why a text is no usable web address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Over [`URL_MAX`].
    #[error("the address is too long")]
    TooLong,
    /// A character that browsers and this parser might read differently.
    #[error("the address holds a forbidden character")]
    Character,
    /// Neither `http` nor `https`.
    #[error("the address is neither http nor https")]
    Scheme,
    /// User name, empty host, bad port or a host outside the plain alphabet.
    #[error("the address has a malformed host")]
    Host,
}

/// A rule that cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRule {
    /// A shim rule must name host and path exactly: the shim would be an open door otherwise.
    #[error("URL rule {0}: a browser-shim rule needs host and path")]
    Open(usize),
    /// An output rule finds nothing without its pattern.
    #[error("URL rule {0}: an output rule needs a regex")]
    NoRegex(usize),
    /// The pattern does not compile.
    #[error("URL rule {0}: bad regex")]
    Regex(usize),
}

/// A web address taken apart. Parsing is stricter than a browser's: what is accepted here means the same there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpUrl<'a> {
    /// `https`, not `http`.
    pub secure: bool,
    /// Lower case; IPv6 literals keep their brackets.
    pub host: String,
    /// The scheme's own unless given.
    pub port: u16,
    /// Begins with `/`.
    pub path: &'a str,
    /// Without its `?`.
    pub query: Option<&'a str>,
}

impl<'a> HttpUrl<'a> {
    /// Takes an address apart.
    pub fn parse(url: &'a str) -> Result<Self, UrlError> {
        if url.len() > URL_MAX {
            return Err(UrlError::TooLong);
        }
        let strange = |b: u8| {
            !b.is_ascii_graphic()
                || matches!(b, b'\\' | b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}')
        };
        if url.bytes().any(strange) {
            return Err(UrlError::Character);
        }
        let (scheme, rest) = url.split_once("://").ok_or(UrlError::Scheme)?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(UrlError::Scheme),
        };
        let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (host, port) = split_authority(authority, if secure { 443 } else { 80 })?;
        let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
        let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
        Ok(Self { secure, host, port, path: if path.is_empty() { "/" } else { path }, query })
    }

    /// The decoded value of a query parameter; the first one counts.
    pub fn query(&self, name: &str) -> Option<String> {
        self.query?.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(key)? == name).then(|| percent_decode(value))?
        })
    }

    /// Scheme, host, port when unusual, and path: fit for a log.
    pub fn without_query(&self) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        match (self.secure, self.port) {
            (true, 443) | (false, 80) => format!("{scheme}://{}{}", self.host, self.path),
            (_, port) => format!("{scheme}://{}:{port}{}", self.host, self.path),
        }
    }

    /// Whether the host is this machine itself.
    pub fn is_loopback(&self) -> bool {
        matches!(self.host.as_str(), "localhost" | "127.0.0.1" | "[::1]")
    }
}

/// What may be logged of any text that was meant as an address.
pub fn loggable(url: &str) -> String {
    HttpUrl::parse(url).map_or_else(|error| format!("({error})"), |url| url.without_query())
}

/// Rules ready to be applied, in order; the first match wins.
#[derive(Debug, Clone)]
pub struct UrlRules {
    rules: Vec<(UrlRule, Option<Regex>)>,
}

/// A URL found in a program's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The URL.
    pub url: String,
    /// What it is good for.
    pub yields: UrlYields,
    /// Whether it touches the end of the text, so that more of it may follow.
    pub at_end: bool,
}

impl UrlRules {
    /// Checks and prepares rules.
    pub fn new(rules: &[UrlRule]) -> Result<Self, BadRule> {
        let prepare = |(index, rule): (usize, &UrlRule)| {
            let pattern = match rule.source {
                UrlSource::BrowserShim if rule.host.is_none() || rule.path.is_none() => {
                    return Err(BadRule::Open(index));
                }
                UrlSource::BrowserShim => None,
                UrlSource::Output => {
                    let pattern = rule.regex.as_deref().ok_or(BadRule::NoRegex(index))?;
                    Some(Regex::new(pattern).map_err(|_| BadRule::Regex(index))?)
                }
            };
            Ok((rule.clone(), pattern))
        };
        Ok(Self { rules: rules.iter().enumerate().map(prepare).collect::<Result<_, _>>()? })
    }

    /// What a URL seen at this source is good for; `None` refuses it.
    pub fn accept(&self, source: UrlSource, url: &str) -> Option<UrlYields> {
        let parsed = HttpUrl::parse(url).ok()?;
        let fits = |(rule, pattern): &&(UrlRule, Option<Regex>)| {
            rule.source == source
                && fits(rule, &parsed)
                && pattern.as_ref().is_none_or(|p| p.find(url).is_some_and(|m| m.as_str() == url))
        };
        self.rules.iter().find(fits).map(|(rule, _)| rule.yields)
    }

    /// What a URL is good for, wherever it was seen.
    pub fn accept_any(&self, url: &str) -> Option<UrlYields> {
        self.accept(UrlSource::BrowserShim, url).or_else(|| self.accept(UrlSource::Output, url))
    }

    /// Every URL in the text that a rule for output accepts.
    pub fn find(&self, text: &str) -> Vec<Found> {
        let mut found: Vec<Found> = Vec::new();
        for (rule, pattern) in &self.rules {
            for hit in pattern.iter().flat_map(|p| p.find_iter(text)) {
                let url = hit.as_str();
                let fits = HttpUrl::parse(url).is_ok_and(|parsed| fits(rule, &parsed));
                if fits && !found.iter().any(|f| f.url == url) {
                    found.push(Found {
                        url: url.to_owned(),
                        yields: rule.yields,
                        at_end: hit.end() == text.len(),
                    });
                }
            }
        }
        found
    }
}

/// Why a callback address is not replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadCallback {
    /// No web address at all.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// Not plain http to this machine.
    #[error("the address must begin with http://localhost, http://127.0.0.1 or http://[::1]")]
    NotLoopback,
    /// A port where the program does not listen.
    #[error("the address has another port than the program's")]
    Port,
    /// Another path.
    #[error("the address has another path than the program's")]
    Path,
    /// Neither a code nor an error, or a state of another sign-in.
    #[error("the address belongs to another sign-in")]
    State,
}

/// Whether an address that a person pasted is the return of this very sign-in.
pub fn check_callback<'a>(
    rule: &CallbackRule,
    sign_in: &str,
    pasted: &'a str,
) -> Result<HttpUrl<'a>, BadCallback> {
    let url = HttpUrl::parse(pasted)?;
    let sign_in = HttpUrl::parse(sign_in)?;
    if url.secure || !url.is_loopback() {
        return Err(BadCallback::NotLoopback);
    }
    let redirect = sign_in.query("redirect_uri");
    let named =
        redirect.as_deref().and_then(|r| HttpUrl::parse(r).ok()).filter(HttpUrl::is_loopback).map(|r| r.port);
    let allowed = match named {
        Some(port) => port == url.port && (rule.ports.is_empty() || rule.ports.contains(&port)),
        None => rule.ports.contains(&url.port),
    };
    if !allowed {
        return Err(BadCallback::Port);
    }
    if url.path != rule.path {
        return Err(BadCallback::Path);
    }
    let state = sign_in.query("state").filter(|s| !s.is_empty());
    let answers = url.query("code").or_else(|| url.query("error")).is_some_and(|v| !v.is_empty());
    if state.is_none() || url.query("state") != state || !answers {
        return Err(BadCallback::State);
    }
    Ok(url)
}

fn fits(rule: &UrlRule, url: &HttpUrl<'_>) -> bool {
    let secure = !rule.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("http"));
    let port = rule.port.unwrap_or(if secure { 443 } else { 80 });
    // An output rule without a host relies on its pattern; scheme and port are then the pattern's business too.
    let origin = match &rule.host {
        Some(host) => *host == url.host && secure == url.secure && port == url.port,
        None => true,
    };
    origin
        && rule.path.as_deref().is_none_or(|path| path == url.path)
        && rule.require_query.iter().all(|name| url.query(name).is_some_and(|value| !value.is_empty()))
}

fn split_authority(authority: &str, default_port: u16) -> Result<(String, u16), UrlError> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (inside, after) = rest.split_once(']').ok_or(UrlError::Host)?;
            inside.parse::<std::net::Ipv6Addr>().map_err(|_| UrlError::Host)?;
            (format!("[{}]", inside.to_ascii_lowercase()), after)
        }
        None => {
            let (host, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
            if host.is_empty() || host.len() > 253 || !host.bytes().all(plain) || host.starts_with('.') {
                return Err(UrlError::Host);
            }
            (host.to_ascii_lowercase(), port)
        }
    };
    let port = match port {
        "" => default_port,
        text => {
            let digits = text
                .strip_prefix(':')
                .filter(|d| d.bytes().all(|b| b.is_ascii_digit()))
                .ok_or(UrlError::Host)?;
            digits.parse().ok().filter(|port| *port != 0).ok_or(UrlError::Host)?
        }
    };
    Ok((host, port))
}

/// `None` for a broken escape or text that is not UTF-8.
fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |b: Option<u8>| char::from(b?).to_digit(16);
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests;
