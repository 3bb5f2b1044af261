//! Compares answers of a serving process with the oracle.
//!
//! An answer that says that it is complete is compared whenever it is given. One that is not is compared with what it says
//! that it covers, unless its reason is that rows are missing or left out.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::{Context, Result, ensure};

use super::confidence::{self, Kind};
use super::events::Event;
use super::exact::{self, ExactSum};
use super::layers::Answered;
use super::notes::Notes;
use super::oracle::{self, Expected, RunFacts, Scope, Series};
use super::serving::Server;
use super::versions::{Metric, SECOND, VERSIONS, Version};
use super::world::World;

/// For so long (µs) an answer may rely on what the log said of its end.
const LOG_END_LASTS: i64 = SECOND;
/// How many of a metric's windows make a longer one.
const ROLLUP: i64 = 5;

/// What comparing has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Compared {
    /// The answer is complete and right.
    Complete,
    /// It is right for what it covers.
    Covered(Vec<Option<&'static str>>),
    /// It says that it lacks rows.
    Lacking(Vec<Option<&'static str>>),
}

/// Compares everything that a serving process answers now.
pub(crate) fn compare(world: &World, server: &Server) -> Result<Compared> {
    let now = world.now;
    let covered = server.serving.covered(now);
    let reasons: Vec<_> = covered.iter().map(|covered| covered.reason).collect();
    let is_complete = reasons.iter().all(Option::is_none);
    if is_complete {
        check_complete(world, server, &covered.iter().map(|covered| covered.offset).collect::<Vec<_>>())?;
    }
    let is_exact =
        |reason: &Option<&str>| matches!(reason, None | Some("behind" | "rebuilding" | "log_end_unknown"));
    let horizon = server.view.as_ref().map(|view| view.horizon.clone());
    let horizon = horizon.unwrap_or_else(|| vec![0; world.log.len()]);
    let is_flushing = server.flushes.iter().zip(&horizon).any(|(flushes, horizon)| flushes.is_open(*horizon));
    count_reasons(world, &reasons);
    if is_flushing {
        world.notes.count(Event::AnswerWithOpenFlush);
    }
    if !reasons.iter().all(is_exact) || (is_flushing && !is_complete) {
        return Ok(Compared::Lacking(reasons));
    }
    let newest = world.tables.views.last();
    let scope = Scope {
        log: &world.log,
        horizon,
        covered: covered.iter().map(|covered| covered.offset).collect(),
        newest_horizon: newest.map_or_else(|| vec![0; world.log.len()], |view| view.horizon.clone()),
        duplicate_window: world.setup.duplicate_window,
    };
    // What is behind is known to be so; if the log does not answer, nothing is known since the batch run.
    let is_known = reasons.iter().all(|reason| matches!(reason, None | Some("behind" | "rebuilding")));
    let oldest_missing = covered.iter().filter_map(|covered| covered.lacking_since).min();
    let held_at = is_known.then(|| oldest_missing.map_or(now, |since| since.min(now)));
    let compared = if is_flushing {
        compare_least(world, server, &scope)
    } else {
        compare_exactly(world, server, &scope, held_at)
    };
    compared.with_context(|| {
        let (horizon, covered) = (&scope.horizon, &scope.covered);
        format!("horizon {horizon:?}, covered {covered:?}, reasons {reasons:?}, version {}", server.version)
    })?;
    Ok(if is_complete { Compared::Complete } else { Compared::Covered(reasons) })
}

fn count_reasons(world: &World, reasons: &[Option<&'static str>]) {
    for reason in reasons.iter().flatten() {
        world.notes.count(match *reason {
            "behind" => Event::ReasonBehind,
            "rebuilding" => Event::ReasonRebuilding,
            "gap" => Event::ReasonGap,
            "damaged" => Event::ReasonDamaged,
            "other_definitions" => Event::ReasonOtherDefinitions,
            "log_end_unknown" => Event::ReasonLogEndUnknown,
            _ => continue,
        });
    }
}

/// HOR-3: an answer is complete if it holds everything that is known to be in the log.
fn check_complete(world: &World, server: &Server, covered: &[i64]) -> Result<()> {
    let asked_at = server.asked_at.context("HOR-3: complete, and the log was never asked for its end")?;
    ensure!(world.now - asked_at <= LOG_END_LASTS, "HOR-3: complete, and the log was asked at {asked_at}");
    for (p, (covered, end)) in covered.iter().zip(&server.ends).enumerate() {
        ensure!(
            covered >= end,
            "HOR-3: complete, and covers {covered} of {end} known offsets of Kafka partition {p}"
        );
        ensure!(
            *covered <= world.log[p].readings.end(),
            "an answer covers {covered}, past the end of the log"
        );
    }
    if let Some(view) = &server.view {
        ensure!(
            view.version == server.version,
            "HOR-3: complete, with a batch view of version {} and a server of {}",
            view.version,
            server.version
        );
    }
    Ok(())
}

/// Compares all windows of all metrics. At `held_at` (µs), everything that was in the log is in the answer.
fn compare_exactly(world: &World, server: &Server, scope: &Scope<'_>, held_at: Option<i64>) -> Result<()> {
    let judged = oracle::judge(scope);
    let mut facts = match &server.view {
        Some(view) => RunFacts::new(&judged, view.as_of_start),
        None => RunFacts::default(),
    };
    facts.as_of = facts.as_of.max(held_at.unwrap_or(facts.as_of));
    let version = &VERSIONS[server.version];
    let taken = server.serving.take(world.now);
    let context = Judgement { version, facts: &facts, now: world.now, notes: &world.notes };
    let mut newest: BTreeMap<(usize, Series), i64> = BTreeMap::new();
    let mut own = Vec::with_capacity(version.metrics.len());
    for (place, metric) in version.metrics.iter().enumerate() {
        own.push(oracle::windows(&judged, version, metric, metric.length));
        for length in [metric.length, metric.length * ROLLUP] {
            let answers = taken.answers(place, length)?;
            let windows = oracle::windows(&judged, version, metric, length);
            let (missing, answers): (Vec<_>, Vec<_>) =
                answers.into_iter().partition(|answer| answer.count == 0);
            compare_metric(&windows, &context, metric, &answers)?;
            compare_missing(&own[place], &windows, &context, (metric, length), &missing)?;
            if length == metric.length {
                for answer in &answers {
                    let series = (answer.metric.clone(), answer.group.clone());
                    let known = newest.entry((place, series)).or_insert(answer.window_start);
                    *known = answer.window_start.max(*known);
                }
            }
        }
    }
    for (place, answer) in server.serving.current(world.now) {
        let series = (answer.metric.clone(), answer.group.clone());
        let expected = newest.remove(&(place, series));
        ensure!(
            expected == Some(answer.window_start),
            "EQ-1: the newest window of a series starts at {expected:?}; answered {answer:?}"
        );
        check_window(&own[place], &context, &version.metrics[place], &answer, Kind::Current)?;
    }
    ensure!(newest.is_empty(), "EQ-1: these series have no newest window: {newest:?}");
    Ok(())
}

/// How windows are judged.
pub(crate) struct Judgement<'a> {
    pub(crate) version: &'a Version,
    pub(crate) facts: &'a RunFacts,
    /// In µs.
    pub(crate) now: i64,
    notes: &'a Notes,
}

impl Judgement<'_> {
    /// Counts a current value of a series that has fallen silent.
    pub(crate) fn count_silent(&self) {
        self.notes.count(Event::CurrentSilent);
    }

    fn count(&self, metric: &Metric, answer: &Answered) {
        let found = [
            (metric.has_quantiles(), Event::WindowWithQuantiles),
            (metric.has_distinct(), Event::WindowWithDistinct),
            (answer.invalid > 0, Event::WindowWithInvalid),
            (answer.conflicts > 0, Event::WindowWithConflict),
            (answer.state == "LIVE", Event::WindowLive),
            (answer.state == "PRELIMINARY", Event::WindowPreliminary),
            (answer.state == "SETTLED", Event::WindowSettled),
            (answer.source == "merged", Event::WindowMerged),
        ];
        found.into_iter().filter(|(is_so, _)| *is_so).for_each(|(_, event)| self.notes.count(event));
    }
}

fn compare_metric(
    windows: &oracle::Windows,
    context: &Judgement<'_>,
    metric: &Metric,
    answers: &[Answered],
) -> Result<()> {
    let mut answered = HashSet::with_capacity(answers.len());
    for answer in answers {
        check_window(windows, context, metric, answer, Kind::Window)?;
        let key = (&answer.metric, &answer.group, answer.window_start);
        ensure!(answered.insert(key), "a window is answered twice: {answer:?}");
    }
    let is_answered = |((metric, group), start): &(Series, i64)| answered.contains(&(metric, group, *start));
    let missing = windows.iter().find(|(key, window)| !window.values.is_empty() && !is_answered(key));
    ensure!(missing.is_none(), "EQ-1: {} has no answer for {missing:?}", metric.name);
    Ok(())
}

/// The windows without readings: all that should have some, and no other.
fn compare_missing(
    own: &oracle::Windows,
    windows: &oracle::Windows,
    context: &Judgement<'_>,
    (metric, length): (&Metric, i64),
    answers: &[Answered],
) -> Result<()> {
    let mut answered: BTreeMap<Series, BTreeSet<i64>> = BTreeMap::new();
    for answer in answers {
        confidence::check_missing(answer).with_context(|| format!("{}: answered {answer:?}", metric.name))?;
        context.notes.count(Event::WindowMissing);
        let series = (answer.metric.clone(), answer.group.clone());
        let is_new = answered.entry(series).or_default().insert(answer.window_start);
        ensure!(is_new, "a window is answered twice: {answer:?}");
    }
    let mut oldest: BTreeMap<&Series, i64> = BTreeMap::new();
    let mut doubtful: HashSet<&Series> = HashSet::new();
    for ((series, start), window) in own {
        if window.doubtful > 0 {
            doubtful.insert(series);
        }
        if !window.values.is_empty() {
            let known = oldest.entry(series).or_insert(*start);
            *known = (*known).min(*start);
        }
    }
    for (series, oldest) in oldest.iter().filter(|(series, _)| !doubtful.contains(*series)) {
        let of_series =
            windows.iter().filter(|((other, _), window)| other == *series && !window.values.is_empty());
        let present: BTreeSet<i64> = of_series.map(|((_, start), _)| *start).collect();
        let expected = confidence::missing(context, metric, series.1.as_deref(), (length, *oldest), &present);
        let found = answered.remove(*series).unwrap_or_default();
        ensure!(
            found == expected,
            "windows of {series:?} without readings: {found:?}, expected {expected:?}, of {length} µs"
        );
    }
    answered.retain(|series, _| !doubtful.contains(series));
    ensure!(answered.is_empty(), "these windows have no readings and are not expected: {answered:?}");
    Ok(())
}

fn check_window(
    windows: &oracle::Windows,
    context: &Judgement<'_>,
    metric: &Metric,
    answer: &Answered,
    kind: Kind,
) -> Result<()> {
    let key = ((answer.metric.clone(), answer.group.clone()), answer.window_start);
    let expected = windows.get(&key);
    let checked = match expected {
        None => Err(anyhow::anyhow!("there must be no such window")),
        Some(expected) if expected.doubtful > 0 => {
            let least = expected.values.len() as u64;
            let range = least..=least + expected.doubtful;
            if range.contains(&answer.count) {
                Ok(())
            } else {
                Err(anyhow::anyhow!("the count is not in {range:?}"))
            }
        }
        Some(expected) => {
            context.count(metric, answer);
            check_numbers(expected, metric, answer)
                .and_then(|()| confidence::check(context, metric, expected, answer, kind))
        }
    };
    checked.with_context(|| format!("EQ-1: {}: answered {answer:?}, expected {expected:?}", metric.name))
}

fn check_numbers(expected: &Expected, metric: &Metric, answer: &Answered) -> Result<()> {
    let values = &expected.values;
    let count = values.len() as f64;
    ensure!(!values.is_empty(), "a window without readings is answered");
    ensure!(answer.count == values.len() as u64, "the count is wrong");
    ensure!(answer.invalid == expected.invalid, "the number of invalid readings is wrong");
    ensure!(answer.conflicts == expected.conflicts, "the number of conflicts is wrong");
    let sum = ExactSum::of(values);
    let absolute: f64 = values.iter().map(|value| value.abs()).sum();
    // One unit in the last place, and the second-order term that `Summary` states.
    let bound = absolute * f64::EPSILON + count * count * absolute * 2f64.powi(-105);
    let largest = values.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    for (name, answered) in &answer.aggregates {
        let is_right = match *name {
            "count" => *answered == Some(count),
            "sum" => answered.is_some_and(|answered| sum.distance(answered) <= bound),
            "avg" => answered.is_some_and(|answered| {
                (answered - sum.value() / count).abs() <= (bound + absolute * f64::EPSILON) / count
            }),
            "min" => *answered == values.iter().copied().reduce(f64::min),
            "max" => *answered == values.iter().copied().reduce(f64::max),
            "first" => *answered == expected.first.map(|(_, value)| value),
            "last" => *answered == expected.last.map(|(_, value)| value),
            "stddev" => match (*answered, exact::stddev(values)) {
                (Some(answered), Some(exact)) => {
                    (answered - exact).abs() <= 4.0 * count * f64::EPSILON * largest
                }
                (answered, exact) => answered == exact,
            },
            "distinct_devices" if metric.has_distinct() => *answered == Some(expected.devices.len() as f64),
            "p50" | "p95" | "p99" if metric.has_quantiles() => {
                let exact = exact::quantile(values, name[1..].parse()?);
                !exact::is_within_sketch(values)
                    || answered.is_some_and(|answered| (answered - exact).abs() <= exact.abs() * 0.010_000_1)
            }
            "p50" | "p95" | "p99" | "distinct_devices" => answered.is_none(),
            other => anyhow::bail!("the oracle does not know the aggregate {other}"),
        };
        ensure!(is_right, "{name} is wrong");
    }
    Ok(())
}

/// The answer may hold some readings past what it covers, since the log's end was asked for before they came. It holds
/// no less than what it covers, and no more than there is.
fn compare_least(world: &World, server: &Server, scope: &Scope<'_>) -> Result<()> {
    let version = &VERSIONS[server.version];
    let all = Scope {
        horizon: scope.horizon.clone(),
        covered: world.log.iter().map(|log| log.readings.end()).collect(),
        newest_horizon: scope.newest_horizon.clone(),
        ..*scope
    };
    let (least, most) = (oracle::judge(scope), oracle::judge(&all));
    let taken = server.serving.take(world.now);
    for (place, metric) in version.metrics.iter().enumerate() {
        let least = oracle::windows(&least, version, metric, metric.length);
        let most = oracle::windows(&most, version, metric, metric.length);
        let answers = taken.answers(place, metric.length)?;
        let counts: BTreeMap<_, _> = answers
            .into_iter()
            .filter(|answer| answer.count > 0)
            .map(|answer| (((answer.metric, answer.group), answer.window_start), answer.count))
            .collect();
        for (key, window) in &most {
            let count = counts.get(key).copied().unwrap_or(0);
            let least = least.get(key).map_or(0, |window| window.values.len() as u64);
            let most = window.values.len() as u64 + window.doubtful;
            ensure!(
                (least..=most).contains(&count),
                "EQ-1: {key:?} has {count} readings, not {least} to {most}"
            );
        }
        ensure!(counts.keys().all(|key| most.contains_key(key)), "EQ-1: a window that must not be there");
    }
    Ok(())
}
