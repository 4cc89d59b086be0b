//! The machine against every order of events.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::wire::{LoginEnd, UrlYields};

const T0: u64 = 1_700_000_000_000;

fn vm() -> VmId {
    VmId::from_uuid(Uuid::from_u128(7))
}

fn start() -> (Session, Vec<Effect>) {
    Session::start(T0, Lane::StreamedBrowser, Limits::default())
}

/// Feeds events one millisecond apart; returns the session and the effects of the last event without `Publish`.
fn run(events: impl IntoIterator<Item = Event>) -> (Session, Vec<Effect>) {
    let (mut session, mut effects) = start();
    for (at, event) in (T0 + 1..).zip(events) {
        effects = session.handle(at, event);
    }
    effects.retain(|effect| *effect != Effect::Publish);
    (session, effects)
}

fn words(detail: &str) -> String {
    detail.to_owned()
}

fn until_user() -> Vec<Event> {
    vec![
        Event::QueuePosition(2),
        Event::SlotGranted(vm()),
        Event::VmReady,
        Event::LoginStarted,
        Event::UrlCaptured(UrlYields::Loopback),
        Event::DesktopReady,
    ]
}

fn until_sealing() -> Vec<Event> {
    let mut events = until_user();
    events.extend([
        Event::PageOpen,
        Event::UserActive,
        Event::CallbackSeen,
        Event::CredentialSeen,
        Event::LoginEnded(LoginEnd::SignedIn),
        Event::Fetched,
    ]);
    events
}

fn until_delivering() -> Vec<Event> {
    let mut events = until_sealing();
    events.push(Event::Sealed);
    events
}

fn release(failed: bool) -> Effect {
    Effect::ReleaseVm { vm: vm(), failed }
}

fn code(session: &Session) -> Option<SessionErrorCode> {
    session.view().error.map(|error| error.code)
}

#[test]
fn a_whole_sign_in_asks_for_the_right_things_in_the_right_order() {
    let expected: Vec<(Event, State, Vec<Effect>)> = vec![
        (Event::QueuePosition(1), State::Queued, vec![]),
        (Event::SlotGranted(vm()), State::Starting, vec![Effect::CreateVm(vm())]),
        (Event::VmReady, State::Starting, vec![Effect::StartDesktop(vm()), Effect::StartLogin(vm())]),
        (Event::LoginStarted, State::Starting, vec![]),
        (Event::UrlCaptured(UrlYields::Loopback), State::Starting, vec![]),
        (Event::DesktopReady, State::AwaitingUser, vec![Effect::OpenPage(vm(), UrlYields::Loopback)]),
        (Event::PageOpen, State::AwaitingUser, vec![]),
        (Event::UserActive, State::AwaitingUser, vec![]),
        (Event::CallbackSeen, State::AwaitingUser, vec![]),
        (Event::CredentialSeen, State::AwaitingUser, vec![]),
        (Event::LoginEnded(LoginEnd::SignedIn), State::Verifying, vec![Effect::FetchCredential(vm())]),
        (Event::Fetched, State::Verifying, vec![Effect::Seal]),
        (Event::Sealed, State::Verifying, vec![release(false), Effect::Transfer]),
        (Event::Transferred, State::Verifying, vec![Effect::Verify]),
        (Event::Verified, State::Succeeded, vec![]),
        (Event::VmGone, State::Succeeded, vec![]),
    ];
    let (mut session, effects) = start();
    assert_eq!(effects, [Effect::Publish, Effect::RequestSlot]);
    for (at, (event, state, effects)) in (T0 + 1..).zip(expected) {
        let mut all = session.handle(at, event.clone());
        assert_eq!(all.remove(0), Effect::Publish, "{event:?}");
        assert_eq!((session.state(), all), (state, effects), "{event:?}");
    }
    assert!(session.is_closed());
    let steps: Vec<Step> = session.view().steps.as_slice().iter().map(|reached| reached.step).collect();
    assert_eq!(
        steps,
        [
            Step::VmRequested,
            Step::VmReady,
            Step::CliStarted,
            Step::UrlCaptured,
            Step::DesktopReady,
            Step::UserActive,
            Step::CallbackSeen,
            Step::CredentialSeen,
            Step::Sealed,
            Step::Transferred,
            Step::Closed,
        ]
    );
    assert_eq!(session.view().steps.at(Step::VmRequested), Some(2));
}

#[test]
fn the_desktop_may_be_there_before_the_url() {
    let (session, effects) = run([
        Event::SlotGranted(vm()),
        Event::VmReady,
        Event::DesktopReady,
        Event::LoginStarted,
        Event::UrlCaptured(UrlYields::Loopback),
    ]);
    assert_eq!(session.state(), State::AwaitingUser);
    assert_eq!(effects, [Effect::OpenPage(vm(), UrlYields::Loopback)]);
}

#[test]
fn a_device_code_needs_no_desktop_but_its_page_is_opened_when_there_is_one() {
    let (mut session, effects) =
        run([Event::SlotGranted(vm()), Event::VmReady, Event::LoginStarted, Event::DeviceCode]);
    assert_eq!((session.state(), effects), (State::AwaitingUser, vec![]));
    assert_eq!(session.view().lane, Lane::DeviceCode);
    let effects = session.handle(T0 + 9, Event::DesktopReady);
    assert!(effects.contains(&Effect::OpenPage(vm(), UrlYields::Device)));
}

#[test]
fn a_loopback_url_replaces_a_paste_url_and_not_the_other_way_round() {
    let mut events = until_user();
    events[4] = Event::UrlCaptured(UrlYields::PasteCode);
    events.push(Event::UrlCaptured(UrlYields::Loopback));
    let (mut session, effects) = run(events);
    assert_eq!(effects, [Effect::OpenPage(vm(), UrlYields::Loopback)]);
    assert_eq!(session.handle(T0 + 99, Event::UrlCaptured(UrlYields::PasteCode)), []);
}

#[test]
fn another_lane_starts_no_desktop_until_it_is_chosen() {
    let (mut session, _) = Session::start(T0, Lane::CallbackRelay, Limits::default());
    session.handle(T0, Event::SlotGranted(vm()));
    assert_eq!(session.handle(T0, Event::VmReady), [Effect::Publish, Effect::StartLogin(vm())]);
    session.handle(T0, Event::UrlCaptured(UrlYields::Loopback));
    assert_eq!(session.state(), State::AwaitingUser);
    let effects = session.handle(T0, Event::LaneChosen(Lane::StreamedBrowser));
    assert_eq!(effects, [Effect::Publish, Effect::StartDesktop(vm())]);
    let effects = session.handle(T0, Event::DesktopReady);
    assert_eq!(effects, [Effect::Publish, Effect::OpenPage(vm(), UrlYields::Loopback)]);
}

#[test]
fn each_fault_ends_in_its_own_code_and_releases_the_vm() {
    use SessionErrorCode as Code;
    let ended =
        |exit_code, reason: &str| Event::LoginEnded(LoginEnd::Failed { exit_code, reason: words(reason) });
    let vm_failed = |cause| Event::VmFailed { cause, detail: words("x") };
    let booting = || vec![Event::SlotGranted(vm())];
    let preparing = || vec![Event::SlotGranted(vm()), Event::VmReady];
    let collecting = || {
        let mut events = until_sealing();
        events.pop();
        events
    };
    let fetch_failed = |cause| Event::FetchFailed { cause, detail: words("x") };
    let seal_failed = |cause| Event::SealFailed { cause, detail: words("x") };
    let cases: Vec<(Vec<Event>, Event, State, Code)> = vec![
        (booting(), vm_failed(VmFailure::ImageMissing), State::Failed, Code::ImageMissing),
        (booting(), vm_failed(VmFailure::NoSpace), State::Failed, Code::NoSpace),
        (booting(), vm_failed(VmFailure::StartFailed), State::Failed, Code::VmStartFailed),
        (booting(), Event::AgentGone, State::Failed, Code::VmLost),
        (booting(), Event::Restarted, State::Failed, Code::Interrupted),
        (preparing(), Event::LoginRefused { detail: words("x") }, State::Failed, Code::CliNotStarted),
        (preparing(), ended(None, "not found"), State::Failed, Code::CliNotStarted),
        (preparing(), ended(Some(1), "boom"), State::Failed, Code::CliExitedEarly),
        (preparing(), ended(Some(0), "no URL"), State::Failed, Code::CliExitedEarly),
        (preparing(), Event::DesktopFailed { detail: words("x") }, State::Failed, Code::DesktopFailed),
        (until_user(), Event::AgentGone, State::Failed, Code::VmLost),
        (until_user(), vm_failed(VmFailure::Died), State::Failed, Code::VmLost),
        (until_user(), ended(Some(1), "denied"), State::Failed, Code::LoginFailed),
        (until_user(), ended(Some(0), "file lacks a key"), State::Failed, Code::CredentialIncomplete),
        (until_user(), Event::LoginEnded(LoginEnd::TimedOut), State::Expired, Code::LoginTimedOut),
        (until_user(), Event::Restarted, State::Failed, Code::Interrupted),
        (collecting(), fetch_failed(FetchFailure::Incomplete), State::Failed, Code::CredentialIncomplete),
        (collecting(), fetch_failed(FetchFailure::Unreadable), State::Failed, Code::CredentialUnreadable),
        (until_sealing(), seal_failed(SealFailure::NoSpace), State::Failed, Code::NoSpace),
        (until_sealing(), seal_failed(SealFailure::Other), State::Failed, Code::SealFailed),
        (until_sealing(), Event::Restarted, State::Failed, Code::Interrupted),
    ];
    for (mut events, fault, state, expected) in cases {
        events.push(fault.clone());
        let (session, effects) = run(events);
        assert_eq!((session.state(), code(&session)), (state, Some(expected)), "{fault:?}");
        assert_eq!(effects, [release(true)], "{fault:?}");
    }
}

#[test]
fn each_deadline_ends_in_its_own_code() {
    use SessionErrorCode as Code;
    let cases: Vec<(Vec<Event>, State, Code)> = vec![
        (vec![Event::SlotGranted(vm())], State::Failed, Code::VmStartTimeout),
        (vec![Event::SlotGranted(vm()), Event::VmReady], State::Failed, Code::UrlTimeout),
        (
            vec![Event::SlotGranted(vm()), Event::VmReady, Event::UrlCaptured(UrlYields::Loopback)],
            State::Failed,
            Code::DesktopTimeout,
        ),
        ([until_user(), vec![Event::PageOpen]].concat(), State::Expired, Code::UserTimeout),
        (
            [until_user(), vec![Event::PageOpen, Event::CredentialSeen]].concat(),
            State::Expired,
            Code::LoginTimedOut,
        ),
        (until_sealing(), State::Failed, Code::SealFailed),
    ];
    for (events, state, expected) in cases {
        let (mut session, _) = run(events);
        let due = session.next_deadline().expect("the session is open");
        assert_eq!(session.handle(due - 1, Event::DeadlineReached), []);
        assert_eq!(session.handle(due, Event::DeadlineReached), [Effect::Publish, release(true)]);
        assert_eq!((session.state(), code(&session)), (state, Some(expected)));
    }
}

#[test]
fn a_person_who_does_something_is_given_more_time_but_not_for_ever() {
    let (mut session, _) = run([until_user(), vec![Event::PageOpen]].concat());
    let limits = Limits::default();
    let mut now = T0;
    while session.state() == State::AwaitingUser {
        let due = session.next_deadline().expect("the session is open");
        session.handle(due - 1, Event::UserActive);
        session.handle(due, Event::DeadlineReached);
        now = due;
    }
    assert_eq!(code(&session), Some(SessionErrorCode::UserTimeout));
    assert!(now - T0 >= limits.user_total_ms && now - T0 < limits.user_total_ms + limits.user_ms);
}

#[test]
fn a_page_that_does_not_open_is_tried_three_times() {
    let (mut session, _) = run(until_user());
    let failed = || Event::PageFailed { detail: words("blank") };
    for _ in 0..2 {
        let effects = session.handle(T0 + 50, failed());
        assert_eq!(effects, [Effect::Publish, Effect::OpenPage(vm(), UrlYields::Loopback)]);
    }
    session.handle(T0 + 60, failed());
    assert_eq!(code(&session), Some(SessionErrorCode::PageFailed));
}

#[test]
fn a_hand_over_is_tried_three_times_and_the_credential_stays_sealed() {
    let (mut session, _) = run(until_delivering());
    session.handle(T0 + 50, Event::VmGone);
    for try_number in 1..=3 {
        session.handle(T0 + 60, Event::TransferFailed { detail: words("CLI VM did not start") });
        if try_number < 3 {
            let due = session.next_deadline().expect("the session is open");
            assert_eq!(session.handle(due, Event::DeadlineReached), [Effect::Publish, Effect::Transfer]);
        }
    }
    assert!(session.is_closed());
    let error = session.view().error.expect("the session failed");
    assert_eq!(error.code, SessionErrorCode::TransferFailed);
    assert!(error.detail.contains("stays sealed"), "{}", error.detail);
}

#[test]
fn after_a_restart_a_sealed_credential_is_still_handed_over() {
    let (session, _) = run(until_delivering());
    let row = serde_json::to_string(&session).expect("sessions are serializable");
    let mut session: Session = serde_json::from_str(&row).expect("sessions are deserializable");
    let effects = session.handle(T0 + 500, Event::Restarted);
    assert_eq!(effects, [Effect::Publish, release(false), Effect::Transfer]);
    session.handle(T0 + 501, Event::VmGone);
    session.handle(T0 + 502, Event::Transferred);
    session.handle(T0 + 503, Event::Verified);
    assert!(session.is_closed());
    assert_eq!(session.state(), State::Succeeded);
}

#[test]
fn a_sign_in_can_be_called_off_until_its_files_are_being_sealed() {
    let (session, effects) = run([until_user(), vec![Event::Cancel]].concat());
    assert_eq!((session.state(), effects), (State::Cancelled, vec![release(false)]));
    let (session, effects) = run([until_sealing(), vec![Event::Cancel]].concat());
    assert_eq!((session.state(), effects), (State::Verifying, vec![]));
    assert!(!session.cancellable());
}

#[test]
fn a_slot_that_is_granted_after_giving_up_is_given_back() {
    let (mut session, effects) = run([Event::QueuePosition(4), Event::Cancel]);
    assert_eq!((session.state(), effects), (State::Cancelled, vec![Effect::LeaveQueue]));
    assert_eq!(session.handle(T0 + 9, Event::SlotGranted(vm())), [Effect::Publish, release(false)]);
    session.handle(T0 + 10, Event::VmGone);
    assert!(session.is_closed());
}

#[test]
fn secrets_in_a_detail_do_not_reach_the_view() {
    let detail = "page https://auth.test/cb?code=FAKEcode failed, token: FAKE1".to_owned();
    let (session, _) = run(vec![Event::SlotGranted(vm()), Event::VmReady, Event::LoginRefused { detail }]);
    assert!(!format!("{:?}", session).contains("FAKE"));
}

#[test]
fn error_codes_are_distinct_and_serialize_as_they_print() {
    let mut seen = std::collections::BTreeSet::new();
    for code in SessionErrorCode::ALL {
        assert_eq!(serde_json::to_value(code).expect("codes are serializable"), code.as_str());
        assert!(seen.insert(code.as_str()) && !code.title().is_empty());
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    let yields = prop_oneof![Just(UrlYields::Loopback), Just(UrlYields::PasteCode), Just(UrlYields::Device)];
    let lane = prop_oneof![Just(Lane::StreamedBrowser), Just(Lane::CallbackRelay), Just(Lane::DeviceCode)];
    let end = prop_oneof![
        Just(LoginEnd::SignedIn),
        Just(LoginEnd::TimedOut),
        Just(LoginEnd::Cancelled),
        (prop::option::of(0..3)).prop_map(|exit_code| LoginEnd::Failed { exit_code, reason: words("x") }),
    ];
    let good = prop_oneof![
        (1..9u32).prop_map(Event::QueuePosition),
        Just(Event::SlotGranted(vm())),
        Just(Event::VmReady),
        Just(Event::DesktopReady),
        Just(Event::LoginStarted),
        yields.prop_map(Event::UrlCaptured),
        Just(Event::DeviceCode),
        Just(Event::PageOpen),
        Just(Event::UserActive),
        Just(Event::CallbackSeen),
        Just(Event::CredentialSeen),
        end.prop_map(Event::LoginEnded),
        Just(Event::LoginEnded(LoginEnd::SignedIn)),
        Just(Event::Fetched),
        Just(Event::Sealed),
        Just(Event::Transferred),
        Just(Event::Verified),
        lane.prop_map(Event::LaneChosen),
    ];
    let bad = prop_oneof![
        Just(Event::QueueFull),
        Just(Event::LeftQueue),
        Just(Event::VmFailed { cause: VmFailure::StartFailed, detail: words("x") }),
        Just(Event::AgentGone),
        Just(Event::DesktopFailed { detail: words("x") }),
        Just(Event::LoginRefused { detail: words("x") }),
        Just(Event::PageFailed { detail: words("x") }),
        Just(Event::FetchFailed { cause: FetchFailure::Incomplete, detail: words("x") }),
        Just(Event::SealFailed { cause: SealFailure::NoSpace, detail: words("x") }),
        Just(Event::TransferFailed { detail: words("x") }),
        Just(Event::VerifyFailed { detail: words("x") }),
        Just(Event::Cancel),
        Just(Event::Restarted),
        Just(Event::VmGone),
        Just(Event::DeadlineReached),
    ];
    prop_oneof![12 => good, 1 => bad]
}

/// What the outside owes: a queue grants at most once and not after it let go; a VM is gone only after it was granted.
#[derive(Default)]
struct Outside {
    left_queue: bool,
    granted: bool,
    gone: bool,
}

impl Outside {
    fn can(&mut self, event: &Event) -> bool {
        match event {
            Event::SlotGranted(_) => !self.left_queue && !std::mem::replace(&mut self.granted, true),
            Event::LeftQueue | Event::QueueFull => {
                self.left_queue |= !self.granted;
                !self.granted
            }
            Event::Restarted => {
                self.left_queue |= !self.granted;
                true
            }
            Event::VmGone => {
                self.gone |= self.granted;
                self.granted
            }
            _ => true,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_happens_a_granted_vm_is_released_and_the_end_is_the_end(
        lane in prop_oneof![3 => Just(Lane::StreamedBrowser), 1 => Just(Lane::CallbackRelay)],
        events in prop::collection::vec((any_event(), 0..400_000u64), 0..80),
        backwards in any::<bool>(),
    ) {
        let (mut session, _) = Session::start(T0, lane, Limits::default());
        let mut outside = Outside::default();
        let mut now = T0;
        let mut final_state = None;
        for (event, pause) in events {
            if !outside.can(&event) {
                continue;
            }
            now = if backwards && pause % 5 == 0 { now.saturating_sub(pause) } else { now + pause % 90_000 };
            let before = session.clone();
            let effects = session.handle(now, event.clone());
            let context = format!("{before:?} on {event:?}");

            prop_assert_eq!(effects.contains(&Effect::Publish), session.version() > before.version(), "{}", context);
            prop_assert!(effects.iter().skip(1).all(|effect| *effect != Effect::Publish), "{}", context);
            prop_assert_eq!(session.next_deadline().is_none(), session.is_closed(), "{}", context);
            prop_assert!(session.view().steps.as_slice().windows(2).all(|pair| pair[0].at_ms <= pair[1].at_ms));
            if before.is_closed() {
                prop_assert_eq!((&session.phase, effects.len()), (&before.phase, 0), "{}", context);
            }
            if let Some(state) = final_state {
                prop_assert_eq!(session.state(), state, "{}", context);
            }
            if session.state().is_final() {
                final_state = Some(session.state());
                prop_assert_eq!(session.held_vm().is_some(), outside.granted && !outside.gone, "{}", context);
            }
            if outside.granted && !outside.gone {
                prop_assert_eq!(session.held_vm(), Some(vm()), "{}", context);
                prop_assert!(!session.is_closed(), "{}", context);
            }
            // The row is all there is: nothing is lost by writing it down and reading it again.
            let row = serde_json::to_string(&session).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Session>(&row).unwrap(), &session);
        }

        // From here on nobody answers: deadlines alone lead to a final state, then the release is repeated for ever.
        let mut releases = 0;
        for _ in 0..60 {
            let Some(due) = session.next_deadline() else { break };
            now = now.max(due);
            let effects = session.handle(now, Event::DeadlineReached);
            prop_assert!(session.next_deadline().is_none_or(|next| next > now), "still due: {session:?}");
            releases += effects.iter().filter(|effect| matches!(effect, Effect::ReleaseVm { .. })).count();
        }
        prop_assert!(session.state().is_final());
        if outside.granted && !outside.gone {
            prop_assert!(releases > 20, "{releases} releases");
            session.handle(now, Event::VmGone);
        } else if !session.is_closed() {
            session.handle(now, Event::LeftQueue);
        }
        prop_assert!(session.is_closed());
        prop_assert_eq!(session.next_deadline(), None);
    }
}
