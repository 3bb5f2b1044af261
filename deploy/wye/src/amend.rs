//! `wye amend`: makes, revokes and lists amendments. It writes to their table alone, beside whatever else runs; the next batch
//! run applies them.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, bail};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use wye_batch::amend::{Affected, affected};
use wye_domain::ErrorKind;
use wye_domain::time::{Span, Window, format_rfc3339};
use wye_metrics::amendment::{Amending, Amendment, Change, Selection, in_force};
use wye_runtime::clock::{Clock, SystemClock};
use wye_runtime::unique;
use wye_tables::TablesError;
use wye_tables::amendments::Amendments;
use wye_tables::store::TableRoot;

use crate::alone::{no_data_dir, passing};
use crate::cli::{AmendAbout, AmendCommand, AmendList, AmendMade, AmendRetag, AmendRevoke, LocalArguments};
use crate::client::{Misused, time};
use crate::site::check::{Given, check};
use crate::site::{data_dir, table_root};
use crate::terminal::{grouped, say};

/// Runs the command.
///
/// # Errors
/// [`Misused`] or a `ConfigError` when arguments or settings are wrong, or when the tables cannot be read or written.
pub(crate) async fn run(command: &AmendCommand) -> Result<()> {
    match command {
        AmendCommand::Drop(drop) => make(&drop.about, Change::Drop).await,
        AmendCommand::Correct(correct) => make(&correct.about, Change::Correct(correct.value.clone())).await,
        AmendCommand::Retag(retag) => make(&retag.about, Change::Retag(tags(retag)?)).await,
        AmendCommand::Revoke(arguments) => revoke(arguments).await,
        AmendCommand::List(arguments) => list(arguments).await,
    }
    .map_err(passing)
}

/// The location of the tables.
async fn tables(local: &LocalArguments) -> Result<TableRoot> {
    let dir = local.data_dir.as_path();
    let checked = check(Given { data_dir: dir, config: local.config.as_deref(), http: None })?;
    if checked.settings.tables.root.is_empty() && !data_dir::is_one(dir) {
        bail!(no_data_dir(dir));
    }
    table_root(&checked, dir, &CancellationToken::new()).await.map_err(passing)
}

fn tags(arguments: &AmendRetag) -> Result<BTreeMap<String, Option<String>>> {
    let mut tags = BTreeMap::new();
    for text in &arguments.tag {
        let (name, value) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
            Misused(format!("--tag {text:?} is not a name and a value; write for example line=9"))
        })?;
        tags.insert(name.to_owned(), Some(value.to_owned()));
    }
    tags.extend(arguments.remove_tag.iter().map(|name| (name.clone(), None)));
    Ok(tags)
}

fn selection(about: &AmendAbout) -> Result<Selection> {
    let times = Window { start: time("--from", &about.from)?, end: time("--until", &about.until)? };
    if times.end <= times.start {
        bail!(Misused(format!("--until {} is not after --from {}", about.until, about.from)));
    }
    Ok(Selection {
        devices: about.device.iter().cloned().collect(),
        metrics: about.metric.iter().cloned().collect(),
        times,
    })
}

async fn make(about: &AmendAbout, change: Change) -> Result<()> {
    let readings = selection(about)?;
    let root = tables(&about.made.local).await?;
    let amendments = Amendments::open(&root)?;
    let amendment = new(&amendments.all().await?, &about.made, readings, change);
    // A wrong expression would end every batch run.
    Amending::plan(std::slice::from_ref(&amendment))
        .map_err(|error| Misused(format!("--value: {}; {}", error.problem, error.remedy)))?;
    let found = affected(&root, &amendment.readings).await?;
    if about.dry_run {
        return print(
            &about.made,
            &json!({ "would_affect": found }),
            &format!("would affect {}", words(&found)),
        );
    }
    amendments.append(&amendment).await.map_err(|error| not_known(error, &amendment))?;
    let answer = json!({ "id": amendment.id, "affects": found });
    print(
        &about.made,
        &answer,
        &format!("amendment {} affects {}; the next batch run applies it", amendment.id, words(&found)),
    )
}

async fn revoke(arguments: &AmendRevoke) -> Result<()> {
    let root = tables(&arguments.made.local).await?;
    let amendments = Amendments::open(&root)?;
    let all = amendments.all().await?;
    let Some(revoked) = all.iter().find(|amendment| amendment.id == arguments.id) else {
        let id = &arguments.id;
        bail!(Misused(format!("there is no amendment {id}; `wye amend list` prints all")));
    };
    let change = Change::Revoke(arguments.id.clone());
    let amendment = new(&all, &arguments.made, revoked.readings.clone(), change);
    amendments.append(&amendment).await.map_err(|error| not_known(error, &amendment))?;
    let answer = json!({ "id": amendment.id, "revokes": arguments.id });
    let line = format!("amendment {} revokes {}; the next batch run applies it", amendment.id, arguments.id);
    print(&arguments.made, &answer, &line)
}

/// An error of storing an amendment. Where it may have been stored, to try again is wrong: a correction would be made twice.
fn not_known(error: TablesError, amendment: &Amendment) -> anyhow::Error {
    match error.kind() {
        ErrorKind::Unavailable => anyhow!(
            "it is not known whether amendment {} was stored: {error}; `wye amend list` says it, look before you try again",
            amendment.id
        ),
        _ => error.into(),
    }
}

/// An amendment that comes after all that there are, whatever the clock says: a revocation must not come before what it
/// revokes.
fn new(all: &[Amendment], made: &AmendMade, readings: Selection, change: Change) -> Amendment {
    let after_all = all.iter().map(|amendment| amendment.created_at + Span(1)).max();
    Amendment {
        id: unique::name().chars().take(12).collect(),
        created_at: after_all.max(Some(SystemClock::default().now())).unwrap_or_default(),
        author: made.author.clone(),
        reason: made.reason.clone(),
        readings,
        change,
    }
}

fn print(made: &AmendMade, answer: &Value, line: &str) -> Result<()> {
    if made.json { say(answer) } else { say(line) }
}

fn words(affected: &Affected) -> String {
    let Affected { readings, devices, first, last } = affected;
    let stretch = match (first, last) {
        (Some(first), Some(last)) => format!(", from {first} to {last}"),
        _ => String::new(),
    };
    let (readings, devices) = (readings.unsigned_abs(), devices.unsigned_abs());
    format!("{} stored readings of {} devices{stretch}", grouped(readings), grouped(devices))
}

async fn list(arguments: &AmendList) -> Result<()> {
    let all = Amendments::open(&tables(&arguments.local).await?)?.all().await?;
    let in_force: Vec<&str> = in_force(&all).iter().map(|amendment| amendment.id.as_str()).collect();
    if arguments.json {
        let all = all.iter().map(|amendment| described(amendment, in_force.contains(&amendment.id.as_str())));
        return say(Value::Array(all.collect()));
    }
    if all.is_empty() {
        return say("no amendments");
    }
    for amendment in all.iter() {
        let Amendment { id, created_at, author, reason, readings, change } = amendment;
        let what = match change {
            Change::Drop => "drop".to_owned(),
            Change::Correct(sql) => format!("correct to {sql}"),
            Change::Retag(tags) => format!("retag {}", json!(tags)),
            Change::Revoke(id) => format!("revoke {id}"),
        };
        let is_revoked = !matches!(change, Change::Revoke(_)) && !in_force.contains(&id.as_str());
        let state = if is_revoked { " (revoked)" } else { "" };
        say(format!("{id}  {}  {author}: {reason}", format_rfc3339(*created_at)))?;
        let (devices, metrics) = (names(&readings.devices, "devices"), names(&readings.metrics, "metrics"));
        let (from, until) = (format_rfc3339(readings.times.start), format_rfc3339(readings.times.end));
        say(format!("    {what}{state}: {devices}, {metrics}, {from} to {until}"))?;
    }
    Ok(())
}

fn names(names: &std::collections::BTreeSet<String>, all: &str) -> String {
    if names.is_empty() {
        return format!("all {all}");
    }
    names.iter().map(String::as_str).collect::<Vec<_>>().join(" ")
}

fn described(amendment: &Amendment, is_in_force: bool) -> Value {
    let Amendment { id, created_at, author, reason, readings, change } = amendment;
    let (value, tags, revokes) = match change {
        Change::Drop => (None, None, None),
        Change::Correct(sql) => (Some(sql), None, None),
        Change::Retag(tags) => (None, Some(tags), None),
        Change::Revoke(id) => (None, None, Some(id)),
    };
    json!({
        "id": id,
        "created_at": format_rfc3339(*created_at),
        "author": author,
        "reason": reason,
        "action": change.name(),
        "devices": readings.devices,
        "metrics": readings.metrics,
        "from": format_rfc3339(readings.times.start),
        "until": format_rfc3339(readings.times.end),
        "value": value,
        "tags": tags,
        "revokes": revokes,
        "in_force": is_in_force,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use wye_domain::time::Micros;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn an_amendment_comes_after_all_others_whatever_the_clock_says() {
        let words = ["wye", "amend", "revoke", "1", "--reason", "it was right"];
        let Command::Amend(amend) = Cli::parse_from(words).command else { panic!("another command") };
        let AmendCommand::Revoke(AmendRevoke { made, .. }) = amend.command else { panic!("another command") };
        let times = Window { start: Micros(0), end: Micros(1) };
        let readings = Selection { devices: ["a".to_owned()].into(), metrics: [].into(), times };
        let mut dropped = new(&[], &made, readings.clone(), Change::Drop);
        // Its clock was a day ahead.
        dropped.created_at = dropped.created_at + Span::from_days(1);
        let all = [dropped];
        let revoked = new(&all, &made, readings, Change::Revoke(all[0].id.clone()));
        assert!(revoked.created_at > all[0].created_at && revoked.id != all[0].id);
    }
}
