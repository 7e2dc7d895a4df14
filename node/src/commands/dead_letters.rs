//! `tickmesh dead-letters`.

mod letters;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use tickmesh::{
    app,
    config::{Config, IngestRole, SourceRole, reader::Span},
    ingest::dead_letters::{Config as LettersConfig, Journal, Letter},
    ops::metrics::now_us,
    source::writing::LogWriter,
    transform::{Operators, RouteConfig, Taken, Transform, becomes, jq},
};

use self::letters::{Reading, utc};

/// List records that could not become events, and put them back after a fix.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    tickmesh dead-letters list --config ingest-1.toml --since 24h\n  \
    tickmesh dead-letters replay --config ingest-1.toml --source engine --dry-run\n  \
    tickmesh dead-letters replay --config ingest-1.toml --source engine\n\n\
    Reads what [dead_letters] of the configuration names: the file, or the topic. `replay` adds each record again to the end of the log\n\
    it came from: same topic, same key, same partition. There all ingest peers take it by the routes that they have now, under a\n\
    new position. What was put back is noted in data_dir, so that a second call does not double it; run it at one peer only, as all\n\
    peers have the same letters. Sources of kind nats-core and embedded have no log that anything could be put back to.\n\n\
    Exit code: 0 if all was done, 1 if something was not.")]
pub struct DeadLetters {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show letters, oldest first: when, where, why, and whether they were put back
    List(Which),
    /// Put records back at the end of their logs
    Replay(Replay),
}

#[derive(Args)]
struct Which {
    /// The configuration file of an ingest peer
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only of this source
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Only what was refused within this time: 30m, 24h
    #[arg(long, value_name = "TIME", value_parser = span)]
    since: Option<Span>,
}

#[derive(Args)]
struct Replay {
    #[command(flatten)]
    which: Which,
    /// Put nothing back; show what the routes would make of each record now
    #[arg(long)]
    dry_run: bool,
    /// Also records that other routes took well: those make their events of it once more
    #[arg(long)]
    partly: bool,
}

fn span(text: &str) -> Result<Span, String> {
    Span::try_from(text.to_owned())
}

impl DeadLetters {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let runtime = super::runtime()?;
        match self.command {
            Command::List(which) => which.open()?.list(&runtime),
            Command::Replay(replay) => {
                let opened = replay.which.open()?;
                if replay.dry_run {
                    opened.dry_run(&runtime, replay.partly)
                } else {
                    runtime.block_on(opened.replay(replay.partly))
                }
            }
        }
    }
}

/// What a command works on.
struct Opened {
    config: Config,
    role: IngestRole,
    letters: LettersConfig,
    source: Option<String>,
    /// In milliseconds since 1970 UTC.
    since: u64,
}

/// What became of the letters.
#[derive(Default)]
struct Counts {
    put_back: u64,
    before: u64,
    partly: u64,
    without: u64,
    unknown: u64,
}

impl Which {
    fn open(self) -> anyhow::Result<Opened> {
        let mut config = Config::load(&self.config)?;
        let role = config.ingest.take();
        let role = role.context("the configuration has no role ingest, which alone has dead letters")?;
        let role = app::with_catalogue(&role, &config.private)?;
        let letters = role.dead_letters.clone();
        let letters = letters.context(
            "the configuration has no [dead_letters]: they are on the operators' page /dead-letters alone",
        )?;
        if let Some(name) = &self.source {
            ensure!(
                role.sources.iter().any(|known| known.source.name == *name),
                "no source is named {name:?}"
            );
        }
        let since = self.since.map_or(0, |span| {
            let span = u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX);
            (now_us() / 1000).saturating_sub(span)
        });
        Ok(Opened { config, role, letters, source: self.source, since })
    }
}

impl Opened {
    /// The letters that are asked for, each once.
    fn reading(&self) -> Reading {
        let sources = self.role.sources.iter().map(|role| role.source.clone());
        let wanted = sources.filter(|source| self.source.as_ref().is_none_or(|name| *name == source.name));
        Reading::open(self.letters.to.clone(), wanted.collect(), self.source.clone(), self.since)
    }

    fn journal(&self) -> anyhow::Result<Journal> {
        Journal::open(&self.letters.journal).context("cannot open the journal of what was put back")
    }

    fn list(&self, runtime: &tokio::runtime::Runtime) -> anyhow::Result<ExitCode> {
        let journal = self.journal()?;
        runtime.block_on(async {
            let mut reading = self.reading();
            let mut count = 0_u64;
            while let Some(letter) = reading.next().await {
                count += 1;
                let state = if journal.has(&letter.id) { "put back" } else { "-" };
                println!("{}\t{}\t{state}\t{}", utc(letter.time), letter.id, letter.reason);
            }
            reading.end().await?;
            println!("{count} letters");
            Ok(ExitCode::SUCCESS)
        })
    }

    /// Shows what the routes make of each record now.
    fn dry_run(&self, runtime: &tokio::runtime::Runtime, partly: bool) -> anyhow::Result<ExitCode> {
        let journal = self.journal()?;
        jq::on_deep_stack(|| {
            let mut routes = HashMap::new();
            for source in &self.role.sources {
                let of = self.role.routes.iter().filter(|route| route.source == source.source.name);
                let of: Vec<RouteConfig> = of.cloned().collect();
                let transform = Transform::new(&of, source.source.channels(), &self.config.private)?;
                routes.insert(source.source.name.clone(), (transform, of));
            }
            runtime.block_on(async {
                let mut reading = self.reading();
                let mut counts = Counts::default();
                while let Some(letter) = reading.next().await {
                    if !counts.takes(&letter, &journal, partly) {
                        continue;
                    }
                    let Some((transform, of)) = routes.get(&letter.source) else {
                        counts.unknown += 1;
                        continue;
                    };
                    counts.put_back += 1;
                    println!("{}", letter.id);
                    for outcome in outcomes(&letter, transform, of) {
                        println!("    {outcome}");
                    }
                }
                reading.end().await?;
                counts.tell("would be put back");
                Ok(ExitCode::SUCCESS)
            })
        })?
    }

    /// What puts records back, by source.
    fn writers(&self) -> anyhow::Result<HashMap<String, Box<dyn LogWriter>>> {
        let mut writers = HashMap::new();
        for SourceRole { source, .. } in &self.role.sources {
            match source.writer() {
                Some(writer) => _ = writers.insert(source.name.clone(), writer),
                None => ensure!(
                    self.source.as_ref() != Some(&source.name),
                    "nothing can be put back to source {:?}: kind {} keeps no log; publish it again where it comes from",
                    source.name,
                    source.kind.name()
                ),
            }
        }
        Ok(writers)
    }

    /// Puts records back, one after the other: of one alone it is not known what became of it, should anything fail.
    async fn replay(&self, partly: bool) -> anyhow::Result<ExitCode> {
        let mut journal = self.journal()?;
        let mut writers = self.writers()?;
        let mut reading = self.reading();
        let mut counts = Counts::default();
        let mut failed = None;
        while let Some(letter) = reading.next().await {
            if !counts.takes(&letter, &journal, partly) {
                continue;
            }
            let Some(writer) = writers.get_mut(&letter.source) else {
                counts.unknown += 1;
                continue;
            };
            if let Err(error) = writer.append(&[letter.put_back()]).await {
                failed =
                    Some(anyhow::anyhow!("{}: {error}; whether its log has it now is not known", letter.id));
                break;
            }
            journal.note(&letter.id).context("cannot note what was put back")?;
            counts.put_back += 1;
        }
        journal.sync().context("cannot note what was put back")?;
        counts.tell("put back");
        match failed {
            Some(error) => Err(error),
            None => {
                reading.end().await?;
                let all = counts.unknown + counts.without == 0;
                Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
        }
    }
}

impl Counts {
    /// Whether a letter is to be put back; counts it if not.
    fn takes(&mut self, letter: &Letter, journal: &Journal, partly: bool) -> bool {
        let reason = if journal.has(&letter.id) {
            &mut self.before
        } else if letter.left_out.is_some() {
            &mut self.without
        } else if letter.events > 0 && !partly {
            &mut self.partly
        } else {
            return true;
        };
        *reason += 1;
        false
    }

    fn tell(&self, done: &str) {
        println!("{} {done}", self.put_back);
        for (count, words) in [
            (self.before, "were put back before"),
            (self.partly, "are left, as other routes took them: --partly puts them back as well"),
            (self.without, "are left, as their letters are without the record, which was too large"),
            (
                self.unknown,
                "are left, as their source is in neither the configuration nor the catalogue, or keeps no log",
            ),
        ] {
            if count > 0 {
                println!("{count} {words}");
            }
        }
    }
}

fn outcomes(letter: &Letter, transform: &Transform, routes: &[RouteConfig]) -> Vec<String> {
    let record = Taken {
        topic: &letter.topic,
        key: letter.key.as_ref(),
        value: &letter.value,
        engine_time_us: letter.engine_time_us,
    };
    let outcomes = Operators::new(routes).make(transform, letter.epoch, record).outcomes;
    if outcomes.is_empty() {
        return vec!["nothing: filters or splits leave nothing of it".to_owned()];
    }
    // Routes may say the same.
    let mut said = HashSet::new();
    outcomes.into_iter().flat_map(becomes).filter(|outcome| said.insert(outcome.clone())).collect()
}
