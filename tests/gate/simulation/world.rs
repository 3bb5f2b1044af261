//! The world of one history: the log, the tables, and all processes. It carries out steps, and checks what must hold
//! after each.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::batch::{BatchProcess, Surroundings, Tables};
use super::comparison::{Compared, compare};
use super::events::Event;
use super::layers::{self, Archive, OwnerRules, Patience, Plans};
use super::log::{Content, ControlAbout, Entry, KafkaPartition};
use super::notes::Notes;
use super::readings::Sender;
use super::serving::Server;
use super::speed::{Budget, Process};
use super::steps::{Action, Extent, Setup, Slot, Step, Task, Who};
use super::versions::{MINUTE, SECOND};

/// When histories start, in µs.
const START: i64 = 1_800_000_007 * SECOND;
/// How many processes of a kind there are.
const SLOTS: usize = 2;

/// The log, the tables and all processes.
pub(crate) struct World {
    pub(crate) setup: Setup,
    plans: Arc<Vec<Plans>>,
    /// By version.
    rules: Vec<OwnerRules>,
    /// In µs; the log's clock and everybody's.
    pub(crate) now: i64,
    pub(crate) log: Vec<KafkaPartition>,
    pub(crate) tables: Tables,
    /// By Kafka partition.
    speed: Vec<[Process; SLOTS]>,
    batch: [BatchProcess; SLOTS],
    servers: Vec<Server>,
    /// The version that processes start with.
    deployed: usize,
    /// Whether the last step is done.
    is_settling: bool,
    pub(crate) notes: Notes,
}

impl World {
    pub(crate) fn new(setup: &Setup, plans: &Arc<Vec<Plans>>, notes: Notes) -> Result<Self> {
        let version = setup.version;
        let partitions = || 0..setup.kafka_partitions as i32;
        let log: Vec<_> = partitions().map(|number| KafkaPartition::new(number, &notes)).collect();
        let rule = |plans| OwnerRules::new(plans, setup.accepts_early, setup.duplicate_window);
        let archive = |kafka_partition| Archive::new(kafka_partition, setup.accepts_early);
        Ok(Self {
            servers: (0..SLOTS)
                .map(|_| Server::start(version, &plans[version], &log))
                .collect::<Result<_>>()?,
            rules: plans.iter().map(rule).collect(),
            plans: Arc::clone(plans),
            now: START,
            log,
            tables: Tables { archives: partitions().map(archive).collect(), views: Vec::new() },
            speed: partitions().map(|_| [Process::new(version), Process::new(version)]).collect(),
            batch: [BatchProcess::new(version), BatchProcess::new(version)],
            deployed: version,
            is_settling: false,
            setup: setup.clone(),
            notes,
        })
    }

    /// Carries out a history, then lets everything catch up.
    pub(crate) fn live(&mut self, steps: &[Step]) -> Result<()> {
        for (nth, step) in steps.iter().enumerate() {
            self.notes.add(|| format!("{nth:4}. {step}"));
            self.carry_out(step).with_context(|| format!("in step {nth}"))?;
        }
        self.notes.add(|| "after the last step".to_owned());
        self.settle().context("after the last step")
    }

    fn carry_out(&mut self, step: &Step) -> Result<()> {
        let random = &mut StdRng::seed_from_u64(step.seed);
        // The log's clock has milliseconds.
        self.now += random.random_range(0..400) * 1_000;
        let p = step.kafka_partition;
        match step.action {
            Action::Send(count) => self.send(random, p, count),
            Action::Hole => {
                let (content, event) = if random.random_bool(0.5) {
                    (Content::Empty, Event::EmptyOffset)
                } else {
                    (Content::Unreadable, Event::UnreadableOffset)
                };
                self.notes.count(event);
                self.log[p].readings.append(Entry { time: self.now, content });
            }
            Action::Wait(seconds) => self.now += seconds * SECOND,
            Action::TakeOver(slot, extent) => self.take_over(random, p, slot, extent)?,
            Action::Overlap(slot, task, extent) => self.overlap(random, (p, slot), task, extent)?,
            Action::CatchUp(slot) => self.catch_up(random, slot)?,
            Action::Work(who, task, extent) => self.work(random, p, who, task, extent)?,
            Action::Crash(slot) => self.speed[p][slot].crash(&self.log[p]),
            Action::Deploy(version) => self.deployed = version,
            Action::Archive => {
                let log = &mut self.log[p];
                let end = log.readings.end();
                let to = if random.random_bool(0.7) { end } else { random.random_range(log.archived..=end) };
                self.tables.archive(log, to)?;
            }
            Action::Batch(slot, extent) => self.batch(random, slot, extent)?,
            Action::CrashBatch(slot) => self.batch[slot].crash(&self.log),
            Action::Tail(slot, extent) => {
                let most = if matches!(extent, Extent::All) { usize::MAX } else { random.random_range(0..4) };
                self.servers[slot].tail(&self.log, most)?;
            }
            Action::AskEnds(slot) => self.servers[slot].ask_ends(&self.log, self.now),
            Action::LookForView(slot) => {
                let patience = if random.random_bool(0.2) { Patience::Over } else { Patience::Left };
                self.servers[slot].look_for_view(&self.tables, patience, &self.notes)?;
            }
            Action::RestartServing(slot) => {
                self.servers[slot] = Server::start(self.deployed, &self.plans[self.deployed], &self.log)?;
            }
            Action::Compare(slot) => {
                if random.random_bool(0.8) {
                    self.servers[slot].ask_ends(&self.log, self.now);
                }
                self.compare(slot)?;
            }
            Action::Damage => self.log[p].is_damaging = true,
            Action::LaterControlRecord => {
                self.log[p].append_control(br#"{"kind":"later"}"#.to_vec(), ControlAbout::Unknown);
            }
        }
        self.check_trims()
    }

    fn send(&mut self, random: &mut StdRng, p: usize, count: usize) {
        let sender = Sender {
            kafka_partition: p,
            kafka_partitions: self.log.len(),
            now: self.now,
            earliest: layers::earliest(self.setup.accepts_early),
            is_spread: self.setup.is_spread,
            resent: self.setup.resent,
        };
        for _ in 0..count {
            // Readings are mostly sent again where they were sent before.
            let is_elsewhere = self.setup.is_spread && random.random_bool(0.2);
            let source = if is_elsewhere { random.random_range(0..self.log.len()) } else { p };
            let content = sender.message(random, &self.log[source].readings);
            self.note_message(p, &content);
            self.log[p].readings.append(Entry { time: self.now, content });
        }
        // Ingest runs in the process of a server, and tells it what the log has acknowledged.
        if random.random_bool(0.3) {
            let next = self.log[p].readings.end();
            self.servers[0].written(p, next, self.now);
        }
    }

    fn note_message(&self, p: usize, content: &Content) {
        let log = &self.log[p];
        let Content::Message { readings, .. } = content else { return };
        log.note(|| format!("readings {} at {}", log.readings.end(), self.now));
        for reading in readings {
            log.note(|| format!("  {reading:?}"));
        }
    }

    fn take_over(&mut self, random: &mut StdRng, p: usize, slot: Slot, extent: Extent) -> Result<()> {
        let is_contended = self.speed[p][1 - slot].is_claiming();
        let process = &mut self.speed[p][slot];
        if process.is_owning() {
            // It claims the Kafka partition again, as after a failure.
            process.stop();
        }
        if process.is_down() && is_contended && extent.effects() > 0 {
            self.notes.count(Event::ConcurrentClaim);
        }
        if process.is_down() && random.random_bool(0.8) {
            process.version = self.deployed;
        }
        let rules = &self.rules[process.version];
        process.take_over(&mut self.log[p], rules, &mut Budget(extent.effects()))?;
        if extent.is_crash() {
            process.crash(&self.log[p]);
        }
        Ok(())
    }

    fn work(&mut self, random: &mut StdRng, p: usize, who: Who, task: Task, extent: Extent) -> Result<()> {
        let newest = self.newest(p);
        let slot = if who == Who::Owner { newest } else { 1 - newest };
        if !self.speed[p][slot].is_owning() {
            // A process that continues a takeover, or one that finds that the Kafka partition has no owner.
            let is_wanted = who == Who::Owner && random.random_bool(0.5);
            return if is_wanted { self.take_over(random, p, slot, extent) } else { Ok(()) };
        }
        let process = &mut self.speed[p][slot];
        process.records = if random.random_bool(0.5) { random.random_range(2..5) } else { 1 };
        process.does_trim = random.random_bool(0.9);
        process.work(&mut self.log[p], task, &mut Budget(extent.effects()))?;
        if extent.is_crash() {
            process.crash(&self.log[p]);
        }
        Ok(())
    }

    /// The process of a slot takes a Kafka partition over, and in the middle of it the other one works on as its owner.
    fn overlap(
        &mut self,
        random: &mut StdRng,
        (p, slot): (usize, Slot),
        task: Task,
        extent: Extent,
    ) -> Result<()> {
        let claiming = Extent::Paused(random.random_range(1..4));
        self.take_over(random, p, slot, claiming)?;
        let owner = &mut self.speed[p][1 - slot];
        if owner.is_owning() {
            owner.records = random.random_range(1..4);
            let log = &mut self.log[p];
            owner.work(log, Task::Read(random.random_range(0..3)), &mut Budget(usize::MAX))?;
            owner.work(log, task, &mut Budget(extent.effects()))?;
        }
        if random.random_bool(0.8) {
            self.take_over(random, p, slot, extent)?;
        }
        Ok(())
    }

    /// Everything in progress continues until the answers contain all readings.
    fn catch_up(&mut self, random: &mut StdRng, slot: Slot) -> Result<()> {
        for p in 0..self.log.len() {
            // An owner may find that it is replaced or overtaken.
            for _ in 0..2 {
                let owner = self.newest(p);
                if !self.speed[p][owner].is_owning() {
                    self.take_over(random, p, owner, Extent::All)?;
                }
                for task in [Task::Listen, Task::Read(usize::MAX), Task::Flush] {
                    self.speed[p][owner].work(&mut self.log[p], task, &mut Budget(usize::MAX))?;
                }
            }
        }
        let server = &mut self.servers[slot];
        let most = if random.random_bool(0.7) { usize::MAX } else { random.random_range(0..12) };
        server.tail(&self.log, most)?;
        server.look_for_view(&self.tables, Patience::Left, &self.notes)?;
        server.ask_ends(&self.log, self.now);
        self.compare(slot).map(|_| ())
    }

    /// The process of a Kafka partition that has claimed it last.
    fn newest(&self, p: usize) -> Slot {
        let generations = self.speed[p].each_ref().map(Process::generation);
        usize::from(generations[1] > generations[0])
    }

    fn batch(&mut self, random: &mut StdRng, slot: Slot, extent: Extent) -> Result<()> {
        if self.batch[slot].is_idle() && random.random_bool(0.8) {
            self.batch[slot].version = self.deployed;
        }
        let mut budget = Budget(extent.effects().min(random.random_range(4..60)));
        // Mostly the owners have time to answer.
        let answers = random.random_bool(0.7);
        self.run_batch(random, slot, &mut Budget(if answers { 1 + self.log.len() } else { 0 }))?;
        if answers {
            for p in 0..self.log.len() {
                self.work(random, p, Who::Owner, Task::Listen, Extent::All)?;
            }
        }
        self.run_batch(random, slot, &mut budget)?;
        if extent.is_crash() {
            self.batch[slot].crash(&self.log);
        }
        if random.random_bool(0.3) {
            for p in 0..self.log.len() {
                let is_disturbed = random.random_bool(self.setup.disturbance);
                let effects = random.random_range(1..4);
                let extent = if is_disturbed { Extent::Crashed(effects) } else { Extent::All };
                self.work(random, p, Who::Owner, Task::Listen, extent)?;
            }
        }
        Ok(())
    }

    fn run_batch(&mut self, random: &mut StdRng, slot: Slot, budget: &mut Budget) -> Result<()> {
        let mut around = Surroundings {
            log: &mut self.log,
            tables: &mut self.tables,
            plans: &self.plans,
            now: self.now,
            patience: if random.random_bool(0.7) { Patience::Over } else { Patience::Left },
            repeat: random.random_range(2..50),
        };
        self.batch[slot].work(&mut around, budget)
    }

    fn compare(&mut self, slot: Slot) -> Result<Compared> {
        if !self.servers[slot].serving.is_started() {
            return Ok(Compared::Lacking(Vec::new()));
        }
        let compared = compare(self, &self.servers[slot])?;
        self.notes.add(|| format!("      serving process {slot}: {compared:?}"));
        self.notes.count(match compared {
            Compared::Complete if self.is_settling => Event::CompleteAnswerInTheEnd,
            Compared::Complete => Event::CompleteAnswer,
            Compared::Covered(_) => Event::CoveredAnswer,
            Compared::Lacking(_) => Event::LackingAnswer,
        });
        Ok(compared)
    }

    /// Nothing above the horizon is ever deleted.
    fn check_trims(&self) -> Result<()> {
        for log in &self.log {
            let (low, horizon) = (log.readings.low(), log.horizon());
            ensure!(low <= horizon, "readings below {low} were deleted, with a horizon of {horizon}");
        }
        Ok(())
    }

    /// Lets everything catch up, without any crash: then answers are complete. After a batch run of everything they are
    /// the oracle's, whatever happened before.
    fn settle(&mut self) -> Result<()> {
        self.is_settling = true;
        for run in &mut self.batch {
            run.crash(&self.log);
        }
        self.settle_owners()?;
        let is_damaged = self.log.iter().any(|log| log.is_damaged);
        let is_current = self.tables.views.last().is_none_or(|view| view.version == self.deployed);
        for slot in 0..SLOTS {
            let compared = self.settle_server(slot)?;
            // A server that has read damaged records, or records of other definitions, waits for the next batch view.
            let may_lack = is_damaged || !is_current || self.servers[slot].version != self.deployed;
            ensure!(
                may_lack || compared == Compared::Complete,
                "HOR-3: everything has caught up: {compared:?}"
            );
        }
        let mut random = StdRng::seed_from_u64(self.log[0].readings.end() as u64);
        // The second time the view is the same, or has more windows that are settled.
        let runs = if random.random_bool(0.2) { 2 } else { 1 };
        for _ in 0..runs {
            self.batch[0].version = self.deployed;
            self.now += MINUTE;
            for log in &mut self.log {
                let end = log.readings.end();
                self.tables.archive(log, end)?;
            }
            loop {
                self.run_batch(&mut random, 0, &mut Budget(1 + self.log.len()))?;
                self.settle_owners_once()?;
                if self.batch[0].is_idle() {
                    break;
                }
            }
            for slot in 0..SLOTS {
                if self.servers[slot].version != self.deployed {
                    self.servers[slot] = Server::start(self.deployed, &self.plans[self.deployed], &self.log)?;
                }
                let compared = self.settle_server(slot)?;
                ensure!(
                    compared == Compared::Complete,
                    "HOR-3: after a batch run of everything: {compared:?}"
                );
            }
        }
        Ok(())
    }

    /// One process takes every Kafka partition over and reads all there is.
    fn settle_owners(&mut self) -> Result<()> {
        for p in 0..self.log.len() {
            self.log[p].is_damaging = false;
            let [first, second] = &mut self.speed[p];
            second.stop();
            first.stop();
            first.version = self.deployed;
        }
        for _ in 0..3 {
            self.settle_owners_once()?;
        }
        Ok(())
    }

    fn settle_owners_once(&mut self) -> Result<()> {
        for p in 0..self.log.len() {
            let (log, process) = (&mut self.log[p], &mut self.speed[p][0]);
            process.does_trim = true;
            process.take_over(log, &self.rules[process.version], &mut Budget(usize::MAX))?;
            for task in [Task::Listen, Task::Read(usize::MAX), Task::Flush] {
                process.work(log, task, &mut Budget(usize::MAX))?;
            }
        }
        Ok(())
    }

    fn settle_server(&mut self, slot: Slot) -> Result<Compared> {
        let server = &mut self.servers[slot];
        server.tail(&self.log, usize::MAX)?;
        // One view that was loaded before, and the newest. The epochs that the first waits for may never come.
        for patience in [Patience::Over, Patience::Left] {
            server.look_for_view(&self.tables, patience, &self.notes)?;
        }
        server.ask_ends(&self.log, self.now);
        self.compare(slot)
    }
}
