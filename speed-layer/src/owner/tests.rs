//! The owner's decisions, one at a time.

use wye_domain::registry::Registry;
use wye_domain::wire::Acceptance;
use wye_metrics::plan::MetricPlans;

use super::*;

/// The generation of the owner under test.
const GENERATION: Generation = Generation(Offset(10));

fn rules() -> Rules {
    let plans = MetricPlans::new(vec![], Arc::new(Registry::default())).unwrap();
    Rules {
        plans: Arc::new(plans),
        acceptance: Acceptance::default(),
        duplicate_window: Span::from_secs(1),
        duplicate_entries: 1_000,
    }
}

fn owner(mut taken: TakenOver) -> Owner {
    taken.control.apply(GENERATION.claim(), &ControlRecord::Claim { owner: "test".into() });
    let mut owner = Owner::new(&rules(), KafkaPartition(0), taken);
    owner.start().unwrap();
    owner.end_remembering().unwrap();
    owner
}

fn taken(recovery: Recovery) -> TakenOver {
    TakenOver {
        generation: GENERATION,
        recovery,
        control: ControlView::default(),
        rows: Vec::new(),
        rows_through: None,
        first_record: BTreeMap::new(),
    }
}

fn rebuild() -> Recovery {
    Recovery::Rebuild { from: Offset(0) }
}

fn fresh() -> Owner {
    owner(taken(rebuild()))
}

/// An owner at 5 in an epoch from 0, some of whose rows hold readings up to 9.
fn after_an_incomplete_flush() -> Owner {
    let mut control = ControlView::default();
    control.expect_start(Offset(0), None);
    let resumed = taken(Recovery::Resume { position: Offset(5), epoch: Offset(0) });
    owner(TakenOver {
        control,
        rows_through: Some(Offset(9)),
        first_record: [(Offset(0), Offset(0))].into(),
        ..resumed
    })
}

/// The owner takes in messages up to an offset, one a second.
fn read(owner: &mut Owner, to: i64) -> Vec<Effect> {
    let mut effects = Vec::new();
    for offset in owner.next().0..to {
        let time = 1_700_000_000_000 + offset * 1_000;
        let payload = format!(r#"{{"device_id":"d","metric":"m","value":{offset},"event_time":{time}}}"#);
        let payload = payload.as_bytes();
        let (offset, ingest_time) = (Offset(offset), Micros::from_millis(time));
        effects.extend(owner.step(Input::Message { offset, ingest_time, payload }).unwrap());
    }
    effects
}

fn receive(owner: &mut Owner, record: &ControlRecord) -> Result<Vec<Effect>, SpeedError> {
    let offset = owner.next_control();
    owner.step(Input::Control { offset, record })
}

fn ask(owner: &mut Owner, through: i64) -> Vec<Effect> {
    let through = Offset(through);
    receive(owner, &ControlRecord::CutRequest { asked_by: "test".into(), through }).unwrap()
}

fn pinned(start: i64) -> ControlRecord {
    ControlRecord::Epoch { generation: None, start: Offset(start), announced_at: None, answers: None }
}

/// Effects as short texts: `rows E..T`, `begin E`, `announce S`, with `for R` where it answers a request.
fn short(effects: &[Effect]) -> Vec<String> {
    effects.iter().map(short_one).collect()
}

fn short_one(effect: &Effect) -> String {
    match effect {
        Effect::Append(Header::Rows { epoch, through, complete: true, .. }, _) => {
            format!("checkpoint {epoch}..{through}")
        }
        Effect::Append(Header::Rows { epoch, through, .. }, _) => format!("rows {epoch}..{through}"),
        Effect::Append(Header::Begin { epoch, reset: true, .. }, _) => format!("reset {epoch}"),
        Effect::Append(Header::Begin { epoch, .. }, _) => format!("begin {epoch}"),
        Effect::Append(Header::Claim { .. }, _) => "claim".to_owned(),
        Effect::Announce(ControlRecord::Epoch { start, answers: Some(request), .. }) => {
            format!("announce {start} for {request}")
        }
        Effect::Announce(ControlRecord::Epoch { start, .. }) => format!("announce {start}"),
        Effect::Announce(other) => format!("{other:?}"),
        Effect::Trim { topic, before } => format!("trim {topic} {before}"),
    }
}

#[test]
fn a_cut_is_made_at_once_where_the_owner_has_read_so_far() {
    let mut owner = fresh();
    read(&mut owner, 7);
    let effects = ask(&mut owner, 7);
    assert_eq!(short(&effects), ["checkpoint 0..7", "begin 7", "announce 7 for 11"]);
    // The open epoch is new enough for the next request, and for one that asks whether there is an owner.
    assert_eq!(short(&ask(&mut owner, 7)), ["announce 7 for 12"]);
    read(&mut owner, 9);
    assert_eq!(short(&ask(&mut owner, 0)), ["announce 7 for 13"]);
    assert_eq!(short(&ask(&mut owner, 8)), ["checkpoint 7..9", "begin 9", "announce 9 for 14"]);
}

#[test]
fn an_owner_that_is_behind_answers_at_once_and_cuts_when_it_gets_there() {
    let mut owner = fresh();
    read(&mut owner, 5);
    assert_eq!(short(&ask(&mut owner, 20)), ["announce 20 for 11"]);
    assert_eq!(short(&ask(&mut owner, 30)), ["announce 30 for 12"]);
    let effects = read(&mut owner, 31);
    let expected =
        ["checkpoint 0..20", "begin 20", "announce 20", "checkpoint 20..30", "begin 30", "announce 30"];
    assert_eq!(short(&effects), expected);
}

#[test]
fn an_announced_start_at_the_position_needs_no_further_message() {
    let mut owner = fresh();
    read(&mut owner, 5);
    assert_eq!(short(&receive(&mut owner, &pinned(5)).unwrap()), [""; 0]);
    let effects = owner.step(Input::Tick(Due::Flush)).unwrap();
    assert_eq!(short(&effects), ["checkpoint 0..5", "begin 5", "announce 5"]);
}

#[test]
fn a_start_among_messages_that_are_not_evaluated_yet_overtakes_the_owner() {
    let mut owner = fresh();
    read(&mut owner, 8);
    // The messages are taken in; nothing is flushed or evaluated yet.
    let error = receive(&mut owner, &pinned(5)).unwrap_err();
    assert!(matches!(error, SpeedError::Overtaken { start: Offset(5), .. }), "{error}");
}

#[test]
fn a_start_inside_an_epoch_that_has_ended_overtakes_the_owner() {
    let mut owner = fresh();
    read(&mut owner, 8);
    owner.step(Input::Tick(Due::Epoch)).unwrap();
    let error = receive(&mut owner, &pinned(5)).unwrap_err();
    assert!(matches!(error, SpeedError::Overtaken { start: Offset(5), .. }), "{error}");
}

#[test]
fn a_start_inside_the_rows_of_an_incomplete_flush_overtakes_the_owner() {
    let error = receive(&mut after_an_incomplete_flush(), &pinned(7)).unwrap_err();
    assert!(matches!(error, SpeedError::Overtaken { start: Offset(7), .. }), "{error}");
}

#[test]
fn no_cut_is_made_inside_the_rows_of_an_incomplete_flush() {
    let mut owner = after_an_incomplete_flush();
    read(&mut owner, 7);
    assert_eq!(short(&owner.step(Input::Tick(Due::Epoch)).unwrap()), ["checkpoint 0..7"]);
    assert_eq!(short(&ask(&mut owner, 7)), ["announce 9 for 11"]);
    assert_eq!(short(&read(&mut owner, 10)), ["checkpoint 0..9", "begin 9", "announce 9"]);
}

#[test]
fn announcements_of_a_fenced_owner_are_ignored() {
    let mut owner = fresh();
    read(&mut owner, 8);
    let fenced = ControlRecord::Epoch {
        generation: Some(Generation(Offset(9))),
        start: Offset(5),
        announced_at: None,
        answers: None,
    };
    assert_eq!(short(&receive(&mut owner, &fenced).unwrap()), [""; 0]);
    let claim = ControlRecord::Claim { owner: "other".into() };
    assert!(matches!(receive(&mut owner, &claim).unwrap_err(), SpeedError::Fenced { .. }));
}

#[test]
fn a_request_from_before_the_owner_is_answered_at_its_start() {
    let mut control = ControlView::default();
    let request = ControlRecord::CutRequest { asked_by: "test".into(), through: Offset(6) };
    control.apply(Offset(3), &request);
    let taken = TakenOver { control, ..taken(rebuild()) };
    let mut owner = Owner::new(&rules(), KafkaPartition(0), taken);
    assert_eq!(short(&owner.start().unwrap()), ["reset 0", "announce 0", "announce 6 for 3"]);
}

#[test]
fn a_new_horizon_deletes_what_is_not_needed_and_nothing_else() {
    let mut owner = fresh();
    owner.step(Input::Begun { epoch: Offset(0), offset: Offset(1) }).unwrap();
    for (to, offset) in [(10, 4), (20, 8), (30, 12)] {
        read(&mut owner, to);
        for effect in ask(&mut owner, to) {
            if let Effect::Announce(record) = effect {
                receive(&mut owner, &record).unwrap();
            }
        }
        owner.step(Input::Begun { epoch: Offset(to), offset: Offset(offset) }).unwrap();
    }
    let effects = receive(&mut owner, &ControlRecord::Horizon { offset: Offset(20), version: 1 }).unwrap();
    // The duplicate window is a second, so that what was announced at 20 is old enough.
    let trimmed = short(&effects);
    assert_eq!(trimmed[..2], ["trim realtime-views 8", "trim readings 20"]);
    assert!(trimmed[2].starts_with("trim control "), "{trimmed:?}");
}

#[test]
fn an_owner_that_may_be_fenced_does_not_delete_the_marker_of_a_newer_one() {
    let mut owner = fresh();
    owner.step(Input::Begun { epoch: Offset(0), offset: Offset(1) }).unwrap();
    read(&mut owner, 3);
    receive(&mut owner, &pinned(3)).unwrap();
    let effects = owner.step(Input::Tick(Due::Flush)).unwrap();
    assert_eq!(short(&effects), ["checkpoint 0..3", "begin 3", "announce 3"]);
    // Another process has claimed before that, which the owner has not read yet; the marker is at 7.
    owner.step(Input::Begun { epoch: Offset(3), offset: Offset(8) }).unwrap();
    let horizon = ControlRecord::Horizon { offset: Offset(3), version: 1 };
    let trims =
        |effects: &[Effect]| short(effects).iter().any(|effect| effect.starts_with("trim realtime-views"));
    assert!(!trims(&receive(&mut owner, &horizon).unwrap()));
    // No other process had claimed.
    for effect in effects {
        if let Effect::Announce(record) = effect {
            receive(&mut owner, &record).unwrap();
        }
    }
    assert!(trims(&receive(&mut owner, &horizon).unwrap()));
}

/// What effects announce of epoch starts: each with its ingest time.
fn announced(effects: &[Effect]) -> Vec<(Offset, Option<Micros>)> {
    let announced = effects.iter().filter_map(|effect| match effect {
        Effect::Announce(ControlRecord::Epoch { start, announced_at, .. }) => Some((*start, *announced_at)),
        _ => None,
    });
    announced.collect()
}

#[test]
fn an_owner_that_has_not_read_the_past_does_not_announce_how_old_it_is() {
    let mut control = ControlView::default();
    // The predecessor has crashed after the beginning of the epoch from 5, before its announcement.
    control.expect_start(Offset(0), Some(Micros(1)));
    control.expect_start(Offset(5), None);
    let resumed = taken(Recovery::Resume { position: Offset(5), epoch: Offset(5) });
    let mut owner = Owner::new(&rules(), KafkaPartition(0), TakenOver { control, ..resumed });
    // The newest time that it has read of, 1, is that of the readings below 0.
    assert_eq!(announced(&owner.start().unwrap()), [(Offset(5), None)]);
    assert_eq!(owner.remembers_from(), None);
    let newest = Micros::from_millis(1_700_000_000_000);
    owner.remember(Offset(4), newest, b"").unwrap();
    owner.end_remembering().unwrap();
    assert_eq!(announced(&ask(&mut owner, 5)), [(Offset(5), Some(newest))]);
}

#[test]
fn an_owner_that_is_behind_the_horizon_keeps_what_it_has_not_read() {
    let mut control = ControlView::default();
    control.expect_start(Offset(50), Some(Micros(1)));
    let mut owner = owner(TakenOver { control, ..taken(rebuild()) });
    read(&mut owner, 3);
    let effects = receive(&mut owner, &ControlRecord::Horizon { offset: Offset(60), version: 1 }).unwrap();
    assert_eq!(short(&effects), ["trim readings 3"]);
}

#[test]
fn messages_that_no_reader_can_decode_are_skipped() {
    let mut owner = fresh();
    read(&mut owner, 5);
    ask(&mut owner, 8);
    let effects = owner.step(Input::Skip { next: Offset(12) }).unwrap();
    assert_eq!(short(&effects), ["checkpoint 0..8", "begin 8", "announce 8"]);
    assert_eq!(owner.next(), Offset(12));
    assert_eq!(short(&read(&mut owner, 13)), [""; 0]);
    assert_eq!(short(&owner.step(Input::Tick(Due::Flush)).unwrap()), ["checkpoint 8..13"]);
}

#[test]
fn offsets_without_a_message_are_covered() {
    let mut owner = fresh();
    read(&mut owner, 5);
    assert_eq!(short(&owner.step(Input::Empty { next: Offset(6) }).unwrap()), [""; 0]);
    assert_eq!(owner.next(), Offset(6));
    assert_eq!(short(&owner.step(Input::Tick(Due::Flush)).unwrap()), ["checkpoint 0..6"]);
}
