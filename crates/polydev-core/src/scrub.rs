//! Takes secrets out of text before it is logged or shown: queries and fragments of URLs, tokens, JWTs, codes.
//!
//! The last line of defence, not the first: nothing should hand a secret to a log. It rather removes too much than
//! too little, and leaves what a reader needs: scheme, host and path of URLs, ids, numbers, ordinary words.

const TOKEN_MIN: usize = 32;
const PASTED_PART_MIN: usize = 12;

/// The text without secrets. Applying it twice changes nothing more.
pub fn scrub(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut value = Value::Open;
    let mut rest = text;
    while !rest.is_empty() {
        let separators = rest.find(|c| !is_separator(c)).unwrap_or(rest.len());
        if rest[..separators].contains('\n') {
            value = Value::Open;
        }
        out.push_str(&rest[..separators]);
        rest = &rest[separators..];
        let word = rest.find(is_separator).unwrap_or(rest.len());
        value = scrub_word(&rest[..word], value, &mut out);
        rest = &rest[word..];
    }
    out
}

/// What the words so far say about the next one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Value {
    Open,
    /// A secret's name was read, its `:` or `=` not yet.
    Named,
    /// The next word is a secret.
    Secret,
}

fn is_separator(c: char) -> bool {
    c.is_whitespace()
        || c.is_control()
        || matches!(
            c,
            '"' | '\'' | '`' | '<' | '>' | '(' | ')' | '{' | '}' | '[' | ']' | ',' | ';' | '|' | '\\'
        )
}

fn scrub_word(word: &str, value: Value, out: &mut String) -> Value {
    if word.is_empty() {
        return value;
    }
    match value {
        Value::Named if matches!(word, ":" | "=") => {
            out.push_str(word);
            return Value::Secret;
        }
        // `Authorization: Bearer x`: the scheme is no secret, what follows is.
        Value::Secret if is_auth_scheme(word) || matches!(word, ":" | "=") => {
            out.push_str(word);
            return Value::Secret;
        }
        // Ordinary short words and numbers behind a name like `token` are prose or redactions already made.
        Value::Secret if !is_placeholder(word) => {
            out.push_str("[secret]");
            return Value::Open;
        }
        Value::Open | Value::Named | Value::Secret => {}
    }
    if let Some(scheme_end) = word.find("://") {
        scrub_url(word, scheme_end + 3, out);
        return Value::Open;
    }
    if let Some((name, _)) = word.split_once(['=', ':'])
        && is_secret_name(name)
    {
        let tail = &word[name.len() + 1..];
        out.push_str(&word[..=name.len()]);
        if tail.is_empty() {
            return Value::Secret;
        }
        out.push_str(if is_placeholder(tail) { tail } else { "[secret]" });
        return Value::Open;
    }
    if let Some(query) = word.find('?')
        && word[query..].contains('=')
    {
        scrub_plain(&word[..query], out);
        out.push_str("?…");
        return Value::Open;
    }
    scrub_plain(word, out);
    if is_secret_name(word) {
        Value::Named
    } else if word.eq_ignore_ascii_case("bearer") {
        Value::Secret
    } else {
        Value::Open
    }
}

fn is_auth_scheme(word: &str) -> bool {
    ["bearer", "basic", "token"].iter().any(|scheme| word.eq_ignore_ascii_case(scheme))
}

fn is_placeholder(word: &str) -> bool {
    matches!(word, "secret" | "token" | "jwt" | "code" | "null" | "true" | "false" | "…")
}

fn is_secret_name(name: &str) -> bool {
    let plain: String =
        name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    [
        "token",
        "secret",
        "password",
        "passphrase",
        "apikey",
        "cookie",
        "authorization",
        "codeverifier",
        "credential",
    ]
    .iter()
    .any(|ending| plain.ends_with(ending))
}

fn scrub_url(word: &str, authority: usize, out: &mut String) {
    let host_end = word[authority..].find(['/', '?', '#']).map_or(word.len(), |at| authority + at);
    let host = word[authority..host_end].rfind('@').map_or(authority, |at| authority + at + 1);
    let path_end = word[host_end..].find(['?', '#']).map_or(word.len(), |at| host_end + at);
    out.push_str(&word[..authority]);
    out.push_str(&word[host..host_end]);
    scrub_plain(&word[host_end..path_end], out);
    if path_end < word.len() {
        out.push_str(&word[path_end..=path_end]);
        out.push('…');
    }
}

/// Replaces token-like runs in what is neither URL nor named value.
fn scrub_plain(word: &str, out: &mut String) {
    if is_device_code(word.trim_end_matches(['.', ':', '!', '?'])) || is_pasted_code(word) {
        out.push_str("[code]");
        return;
    }
    let mut rest = word;
    while !rest.is_empty() {
        let run = rest.find(|c| !is_token_char(c)).unwrap_or(rest.len());
        if run == 0 {
            let first = rest.chars().next().map_or(0, char::len_utf8);
            out.push_str(&rest[..first]);
            rest = &rest[first..];
            continue;
        }
        if let Some(jwt) = jwt_len(rest) {
            out.push_str("[jwt]");
            rest = &rest[jwt..];
            continue;
        }
        out.push_str(if is_token(&rest[..run]) { "[token]" } else { &rest[..run] });
        rest = &rest[run..];
    }
}

fn is_token_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '+' | '=' | '~')
}

/// `header.payload.signature`, the header being the start of a JSON object in base64url; the signature may be empty.
fn jwt_len(text: &str) -> Option<usize> {
    if !text.starts_with("eyJ") {
        return None;
    }
    let end = text.find(|c| !is_token_char(c) && c != '.').unwrap_or(text.len());
    (text[..end].matches('.').count() >= 2).then_some(end)
}

fn is_token(run: &str) -> bool {
    const PREFIXES: [&str; 9] =
        ["sk-", "sess-", "gho_", "ghp_", "ghu_", "ghs_", "github_pat_", "ya29", "sk_"];
    if PREFIXES.iter().any(|prefix| run.starts_with(prefix)) && run.len() >= 12 {
        return true;
    }
    let digits = run.bytes().any(|b| b.is_ascii_digit());
    let letters = run.bytes().any(|b| b.is_ascii_alphabetic());
    run.len() >= TOKEN_MIN && digits && letters && !is_uuid_name(run)
}

/// A UUID, alone or behind a short word as in `browser-<uuid>`: ids are what logs are read by.
fn is_uuid_name(run: &str) -> bool {
    let Some(start) = run.len().checked_sub(36) else { return false };
    let Some(uuid) = run.get(start..) else { return false };
    let shaped = uuid.bytes().enumerate().all(|(at, byte)| match at {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    });
    shaped && start <= 16
}

/// `ABCD-1234`, `ABCD-12345`: what device pages ask for.
fn is_device_code(word: &str) -> bool {
    let Some((left, right)) = word.split_once('-') else { return false };
    let part = |part: &str, lens: std::ops::RangeInclusive<usize>| {
        lens.contains(&part.len()) && part.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
    };
    part(left, 4..=4) && part(right, 4..=5)
}

/// `code#state`, as a page shows it for pasting.
fn is_pasted_code(word: &str) -> bool {
    word.split_once('#').is_some_and(|(code, state)| {
        [code, state].iter().all(|part| part.len() >= PASTED_PART_MIN && part.chars().all(is_token_char))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn secrets_of_every_shape_are_taken_out() {
        let cases = [
            (
                "open https://auth.openai.com/oauth/authorize?client_id=FAKE&state=FAKEstate now",
                "open https://auth.openai.com/oauth/authorize?… now",
            ),
            (
                "http://localhost:1455/success?id_token=eyJhbGciOi.FAKE.FAKE",
                "http://localhost:1455/success?…",
            ),
            ("GET /auth/callback?code=FAKEcode&state=x HTTP/1.1", "GET /auth/callback?… HTTP/1.1"),
            ("https://user:FAKEpass@proxy.test:8080/x#FAKEfragment", "https://proxy.test:8080/x#…"),
            (
                r#"{"access_token":"FAKE1","expires_in":3600}"#,
                r#"{"access_token":"[secret]","expires_in":3600}"#,
            ),
            (r#"{"refreshToken" : "FAKE1"}"#, r#"{"refreshToken" : "[secret]"}"#),
            ("Authorization: Bearer FAKE1", "Authorization: Bearer [secret]"),
            ("authorization: token gho_FAKE", "authorization: token [secret]"),
            ("password=FAKE1 user=alice", "password=[secret] user=alice"),
            ("jwt eyJhbGciOiJub25lIn0.eyJGQUtFIjoxfQ.FAKE.", "jwt [jwt]"),
            ("token-like FAKE0123456789abcdefABCDEF0123456789", "token-like [token]"),
            ("gho_FAKE1234567890", "[token]"),
            ("enter code FAKE-1234.", "enter code [code]"),
            ("paste FAKEcode12345#FAKEstate12345", "paste [code]"),
            ("/cb/FAKE0123456789abcdefABCDEF0123456789/x", "/cb/[token]/x"),
        ];
        for (dirty, clean) in cases {
            assert_eq!(scrub(dirty), clean);
        }
    }

    #[test]
    fn what_a_reader_needs_stays() {
        for text in [
            "vm 0d3268c1-6a1f-4d5a-8a8e-4b5e9a531f0a is ready after 1204 ms, state=awaiting_user",
            "codex ended with exit status 1: Not logged in",
            "/usr/local/lib/node_modules/@openai/codex/bin/codex.js: No such file or directory",
            "https://auth.openai.com/oauth/authorize",
            "refused evil.example:443, 2 of 3 tries; UTF-8; 2026-11-22T03:30:00Z",
            "Wörter mit Umlauten bleiben",
        ] {
            assert_eq!(scrub(text), text);
        }
    }

    proptest! {
        #[test]
        fn scrubbing_twice_changes_nothing_more(text in "[ -~\n€]{0,120}") {
            let once = scrub(&text);
            prop_assert_eq!(scrub(&once), once.clone());
        }

        #[test]
        fn no_query_value_survives(host in "[a-z]{1,8}\\.test", path in "(/[a-z]{1,6}){0,3}", value in "FAKE[A-Za-z0-9_.~-]{1,40}") {
            let text = format!("see \"https://{host}{path}?code={value}\" and {path}/x?state={value}&a=b");
            prop_assert!(!scrub(&text).contains("FAKE"), "{}", scrub(&text));
        }

        #[test]
        fn no_token_survives_in_json(key in "(access_token|refreshToken|id_token|apiKey|password)", value in "FAKE[A-Za-z0-9_.~/+-]{0,60}") {
            let text = serde_json::json!({ key: value, "n": 1 }).to_string();
            prop_assert!(!scrub(&text).contains("FAKE"), "{}", scrub(&text));
        }
    }
}
