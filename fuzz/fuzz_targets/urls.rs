//! Addresses that guest programs hand over: what a rule accepts names the rule's host, and what may be logged has no query.
#![no_main]

use libfuzzer_sys::fuzz_target;
use polydev_core::{
    url_rule::{HttpUrl, UrlRules, check_callback, loggable},
    wire::{CallbackRule, UrlRule, UrlSource, UrlYields},
};

fuzz_target!(|text: &str| {
    let rule = UrlRule {
        source: UrlSource::BrowserShim,
        yields: UrlYields::Loopback,
        host: Some("id.test".into()),
        path: Some("/authorize".into()),
        scheme: None,
        port: None,
        require_query: vec!["state".into()],
        regex: None,
    };
    let rules = UrlRules::new(&[rule]).expect("a sound rule");
    if rules.accept(UrlSource::BrowserShim, text).is_some() {
        assert!(text.to_ascii_lowercase().starts_with("https://id.test"));
    }
    assert!(!loggable(text).contains('?'));
    let callback = CallbackRule { ports: vec![1455], path: "/callback".into() };
    let sign_in = "https://id.test/authorize?state=s&redirect_uri=http://localhost:1455/callback";
    if let Ok(url) = check_callback(&callback, sign_in, text) {
        assert!(url.is_loopback() && url.port == 1455 && !url.secure);
    }
    let _ = HttpUrl::parse(text);
});
