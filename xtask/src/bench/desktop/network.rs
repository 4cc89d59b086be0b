//! The product over a bad network: does the picture freeze, does it come back, does it come at all.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use serde_json::json;

use super::{
    Lane, Options, SETTLE, Scene, Signs, Size, Way, interrupt::pause, open, product::Product,
    receiver::Receiver, visit,
};
use crate::{
    bench::Row,
    relay::{Conditions, Relay},
    run::step,
};

/// 60 ms of round trip, 2 % lost each way.
const LOSSY: Conditions = Conditions { delay_ms: 30.0, loss_percent: 2.0, kbit_per_second: None };
const BLOCKED: Conditions = Conditions { delay_ms: 0.0, loss_percent: 100.0, kbit_per_second: None };
const SEED: u64 = 1;
/// A picture that stands still for this long while it should move is a freeze.
const FREEZE_MS: f64 = 500.0;
const FIRST_PICTURE_MS: f64 = 3000.0;

/// Figures of both trials.
pub(super) fn measure(receiver: &mut Receiver, product: &Product, options: &Options) -> Result<Vec<Row>> {
    let sign_in = product.sign_in("bench-network")?;
    let mut rows = Vec::new();
    // The answer to an offer names the endpoint.
    let opened = open(receiver, product, &sign_in, Lane::WebRtc, Size::Hd, &Way::default())?;
    let endpoint = opened["udp"].as_str().context("the answer has a UDP candidate")?;
    let endpoint: SocketAddr = endpoint.parse().context("the endpoint's address")?;
    let relay_with =
        |conditions| Relay::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), endpoint, conditions, SEED);
    let through = |relay: &Relay, any_lane| Way { relay: Some(relay.address), any_lane };

    step("webrtc with 60 ms round trip and 2 % loss", || {
        let relay = relay_with(Conditions { loss_percent: 0.0, ..LOSSY })?;
        let way = through(&relay, false);
        open(receiver, product, &sign_in, Lane::WebRtc, Size::Hd, &way)?;
        visit(receiver, &sign_in.display, Scene::Busy)?;
        let _shown = Signs::show(&sign_in.display)?;
        relay.set(LOSSY);
        pause(SETTLE)?;
        let before = relay.passed();
        let seen = receiver.look(options.network_time)?;
        let after = relay.passed();
        receiver.ask("close", json!({}))?;

        let name = |what: &str| format!("busy 720p webrtc, 60 ms, 2 % loss: {what}");
        let freezes = seen.gaps.iter().filter(|gap| **gap > FREEZE_MS).count();
        let longest = seen.gaps.iter().copied().fold(0.0, f64::max);
        let lost = (after.lost - before.lost) as f64;
        let offered = lost + (after.packets - before.packets) as f64;
        let grown = |field: &str| seen.grown[field].as_f64().map(|count| (field.to_owned(), count));
        rows.extend(Row::of(name("longest freeze"), "ms", &[longest], Some(FREEZE_MS)));
        rows.extend(Row::of(name("freezes above 500 ms"), "", &[freezes as f64], Some(0.0)));
        rows.extend(Row::of(name("between pictures"), "ms", &seen.gaps, None));
        rows.extend(Row::of(name("picture"), "ms", &seen.ages, None));
        rows.extend(Row::of(name("click to picture"), "ms", &seen.clicks, None));
        rows.extend(Row::of(name("clicks never seen"), "", &[seen.missed as f64], None));
        rows.extend(Row::of(name("packets lost"), "%", &[100.0 * lost / offered], None));
        for (field, count) in ["nackCount", "pliCount", "keyFramesDecoded", "retransmittedPacketsReceived"]
            .into_iter()
            .filter_map(grown)
        {
            rows.extend(Row::of(name(&field), "", &[count], None));
        }
        Ok(())
    })?;
    step("webrtc with UDP blocked", || {
        let relay = relay_with(BLOCKED)?;
        let opened = open(receiver, product, &sign_in, Lane::WebRtc, Size::Hd, &through(&relay, true))?;
        let first = opened["firstPictureMs"].as_f64().context("the receiver tells when the picture came")?;
        receiver.ask("close", json!({}))?;
        let lane = opened["kind"].as_str().unwrap_or("?");
        let name = format!("UDP blocked: opening to first picture, by {lane}");
        rows.extend(Row::of(name, "ms", &[first], Some(FIRST_PICTURE_MS)));
        Ok::<_, anyhow::Error>(())
    })?;
    product.cancel(&sign_in)?;
    Ok(rows)
}
