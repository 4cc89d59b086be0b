use super::*;
use proptest::prelude::*;

fn shim_rule() -> UrlRule {
    UrlRule {
        source: UrlSource::BrowserShim,
        yields: UrlYields::Loopback,
        host: Some("auth.openai.com".into()),
        path: Some("/oauth/authorize".into()),
        scheme: None,
        port: None,
        require_query: ["client_id", "redirect_uri", "state"].map(str::to_owned).to_vec(),
        regex: None,
    }
}

fn output_rule(regex: &str, yields: UrlYields) -> UrlRule {
    let (host, path, require_query) = (None, None, vec![]);
    UrlRule {
        source: UrlSource::Output,
        yields,
        host,
        path,
        require_query,
        regex: Some(regex.into()),
        ..shim_rule()
    }
}

const GOOD: &str = "https://auth.openai.com/oauth/authorize?client_id=FAKE&redirect_uri=http%3A%2F%2F127.0.0.1%3A1455%2Fauth%2Fcallback&state=s1";

#[test]
fn exactly_the_sign_in_page_is_accepted() {
    let rules = UrlRules::new(&[shim_rule()]).unwrap();
    assert_eq!(rules.accept(UrlSource::BrowserShim, GOOD), Some(UrlYields::Loopback));
    assert_eq!(rules.accept(UrlSource::Output, GOOD), None);
    for foreign in [
        "https://evil.example/oauth/authorize?client_id=a&redirect_uri=b&state=c",
        "http://auth.openai.com/oauth/authorize?client_id=a&redirect_uri=b&state=c",
        "https://auth.openai.com:8443/oauth/authorize?client_id=a&redirect_uri=b&state=c",
        "https://auth.openai.com/oauth/authorize/../x?client_id=a&redirect_uri=b&state=c",
        "https://auth.openai.com/oauth/authorize?client_id=a&redirect_uri=b&state=",
        "https://auth.openai.com/oauth/authorize?client_id=a&redirect_uri=b",
        "https://auth.openai.com/oauth/authorize?client_id=a&redirect_uri=b#&state=c",
        "https://user@auth.openai.com/oauth/authorize?client_id=a&redirect_uri=b&state=c",
        "https://auth.openai.com\\@evil.example/oauth/authorize?client_id=a&redirect_uri=b&state=c",
        "https://auth.openai.com.evil.example/oauth/authorize?client_id=a&redirect_uri=b&state=c",
        "https://evil.example/?https://auth.openai.com/oauth/authorize?client_id=a&redirect_uri=b&state=c",
        "javascript://auth.openai.com/oauth/authorize?client_id=a&redirect_uri=b&state=c",
        "https://auth.openai.com/oauth/authorize?client_id=a&redirect_uri=b&state=c\n--flag",
        "file:///etc/passwd",
        "",
    ] {
        assert_eq!(rules.accept(UrlSource::BrowserShim, foreign), None, "{foreign}");
    }
}

#[test]
fn scheme_and_host_are_matched_without_regard_to_case() {
    let rules = UrlRules::new(&[shim_rule()]).unwrap();
    let url = "HTTPS://AUTH.openai.COM/oauth/authorize?client_id=a&redirect_uri=b&state=c";
    assert_eq!(rules.accept(UrlSource::BrowserShim, url), Some(UrlYields::Loopback));
}

#[test]
fn a_rule_for_a_test_provider_names_its_scheme_and_port() {
    let rule = UrlRule {
        scheme: Some("http".into()),
        port: Some(8080),
        host: Some("demo.test".into()),
        ..shim_rule()
    };
    let rules = UrlRules::new(&[rule]).unwrap();
    let query = "/oauth/authorize?client_id=a&redirect_uri=b&state=c";
    assert!(rules.accept(UrlSource::BrowserShim, &format!("http://demo.test:8080{query}")).is_some());
    assert!(rules.accept(UrlSource::BrowserShim, &format!("http://demo.test{query}")).is_none());
    assert!(rules.accept(UrlSource::BrowserShim, &format!("https://demo.test:8080{query}")).is_none());
}

#[test]
fn the_first_rule_wins_and_output_is_searched_by_pattern() {
    let rules = UrlRules::new(&[
        shim_rule(),
        output_rule(r"https://github\.com/login/device", UrlYields::Device),
        output_rule(r"https://(?:claude\.ai|github\.com)/\S+", UrlYields::PasteCode),
    ])
    .unwrap();
    let found = rules.find("open https://github.com/login/device and\nhttps://claude.ai/oauth?x=1");
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!((found[0].yields, found[0].at_end), (UrlYields::Device, false));
    assert_eq!((found[1].yields, found[1].at_end), (UrlYields::PasteCode, true));
    assert_eq!(rules.accept_any("https://github.com/login/device"), Some(UrlYields::Device));
    assert_eq!(rules.accept_any("https://github.com.evil.example/login/device"), None);
}

#[test]
fn rules_that_would_accept_anything_are_refused() {
    let open = UrlRule { path: None, ..shim_rule() };
    assert_eq!(UrlRules::new(&[open]).unwrap_err(), BadRule::Open(0));
    let silent = UrlRule { source: UrlSource::Output, ..shim_rule() };
    assert_eq!(UrlRules::new(&[shim_rule(), silent]).unwrap_err(), BadRule::NoRegex(1));
    assert_eq!(UrlRules::new(&[output_rule("(", UrlYields::Device)]).unwrap_err(), BadRule::Regex(0));
}

#[test]
fn only_the_return_of_this_sign_in_is_replayed() {
    let rule = CallbackRule { ports: vec![1455, 1457], path: "/auth/callback".into() };
    let check = |pasted: &str| check_callback(&rule, GOOD, pasted).map(|_| ());
    for host in ["127.0.0.1", "localhost", "[::1]"] {
        assert_eq!(check(&format!("http://{host}:1455/auth/callback?code=FAKE&state=s1")), Ok(()));
    }
    assert_eq!(check("http://localhost:1455/auth/callback?error=access_denied&state=s1"), Ok(()));
    for (pasted, why) in [
        ("https://localhost:1455/auth/callback?code=FAKE&state=s1", BadCallback::NotLoopback),
        ("http://evil.example:1455/auth/callback?code=FAKE&state=s1", BadCallback::NotLoopback),
        ("http://localhost:1457/auth/callback?code=FAKE&state=s1", BadCallback::Port),
        ("http://localhost:22/auth/callback?code=FAKE&state=s1", BadCallback::Port),
        ("http://localhost:1455/cancel?code=FAKE&state=s1", BadCallback::Path),
        ("http://localhost:1455/auth/callback?code=FAKE&state=s2", BadCallback::State),
        ("http://localhost:1455/auth/callback?state=s1", BadCallback::State),
        ("http://localhost:1455/auth/callback", BadCallback::State),
        ("localhost:1455/auth/callback?code=FAKE&state=s1", BadCallback::Url(UrlError::Scheme)),
    ] {
        assert_eq!(check(pasted), Err(why), "{pasted}");
    }
    let any_port = CallbackRule { ports: vec![], path: "/auth/callback".into() };
    assert!(
        check_callback(&any_port, GOOD, "http://localhost:1455/auth/callback?code=FAKE&state=s1").is_ok()
    );
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
        let _ = HttpUrl::parse(&text).map(|url| (url.query("a"), url.without_query()));
        let _ = loggable(&text);
    }

    #[test]
    fn what_may_be_logged_never_holds_the_query(host in "[a-z]{1,9}", secret in "FAKE[a-zA-Z0-9]{1,20}") {
        let url = format!("https://{host}.test/p?state={secret}#{secret}");
        prop_assert_eq!(loggable(&url), format!("https://{host}.test/p"));
    }

    #[test]
    fn query_values_survive_encoding(value in "\\PC{0,40}") {
        let encoded: String = value.bytes().map(|b| format!("%{b:02x}")).collect();
        let url = format!("https://a.test/?x=1&v={encoded}");
        prop_assert_eq!(HttpUrl::parse(&url).unwrap().query("v"), Some(value));
    }

    #[test]
    fn an_accepted_url_has_the_rules_host_right_after_its_scheme(prefix in "[a-z:/@.?#\\\\]{0,12}", suffix in "\\PC{0,30}") {
        let rules = UrlRules::new(&[shim_rule()]).unwrap();
        let url = format!("https://{prefix}auth.openai.com/oauth/authorize?client_id=a&redirect_uri=b&state=c{suffix}");
        if rules.accept(UrlSource::BrowserShim, &url).is_some() {
            prop_assert_eq!(prefix, "");
        }
    }
}
