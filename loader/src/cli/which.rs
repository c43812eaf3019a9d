//! `fuelrail which`: the samples at a place in a run, by name.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{Failure, opening, signals, spec};
use crate::client::ClientError;
use crate::config::PipelineConfig;
use crate::engine::lineage::{self, Named};
use crate::pipeline::{Opened, Pipeline};
use crate::plan::Cursor;
use crate::token::{Allow, Token};
use fuelrail_connectors::shown;

#[derive(Debug, Args)]
pub(super) struct Which {
    #[command(flatten)]
    spec: spec::Spec,
    /// Start from a loader's state, as `json.dump(loader.state_dict(), file)` writes it. A stream needs it, because the
    /// state says which offsets its window holds
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// With --state: the samples just before it instead, the batch after which the state was saved
    #[arg(long, requires = "state")]
    before: bool,
    /// Epoch [default: that of the state, or 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = super::at_least::<u64, 0>)]
    epoch: Option<u64>,
    /// First position in the epoch, counted over all ranks [default: that of the state, or 0]
    #[arg(long, conflicts_with = "before", value_name = "N", allow_negative_numbers = true, value_parser = super::at_least::<u64, 0>)]
    position: Option<u64>,
    /// Number of samples [default: one batch times --world-size]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = super::at_least::<u64, 0>)]
    count: Option<u64>,
    /// Number of ranks of the run
    #[arg(long, default_value_t = 1, value_name = "N", allow_negative_numbers = true, value_parser = super::at_least::<u64, 1>)]
    world_size: u64,
    /// The on_error setting of the run, which is part of its order
    #[arg(long, value_name = "RULE", default_value = "substitute", value_parser = ["substitute", "drop", "fail"])]
    on_error: String,
    /// Print one JSON object per line instead of a table
    #[arg(long)]
    json: bool,
}

impl Which {
    pub fn run(self) -> Result<(), Failure> {
        signals::watch()?;
        let state = self.state.as_ref().map(|path| {
            let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", shown(&path)))?;
            Token::from_json(&text).map_err(|error| Failure::from(format!("{}: {error}", shown(&path))))
        });
        let state = state.transpose()?;
        let mut config = self.spec.pipeline()?;
        if self.spec.is_of_flags() {
            config["on_error"] = json!(self.on_error);
            if let Some(token) = state.as_ref().filter(|_| !self.spec.has_seed()) {
                config["seed"] = json!(token.identity.seed);
            }
        }
        let config = PipelineConfig::from_json(config).map_err(|said| self.spec.refused(said.into()))?;
        let source = config.source_of_fields();
        let opened = opening::watched(move |opening| Opened::open(&source, opening))?;
        let pipeline = Pipeline::open(config, Some(opened))?;
        if let Some(token) = &state {
            token.verify(&pipeline.identity, &[Allow::Pixels])?;
        }
        let count = self.count.unwrap_or(pipeline.config.batch_size * self.world_size);
        if count == 0 || count > 1 << 24 {
            return Err(format!("--count {count} is not between 1 and {}", 1 << 24).into());
        }
        let stood = state.as_ref().map(Token::cursor).unwrap_or_default();
        let (mut position, mut count) = (self.position.unwrap_or(stood.position), count);
        if self.before {
            count = count.min(position);
            position -= count;
        }
        let cursor = Cursor { epoch: self.epoch.unwrap_or(stood.epoch), position };
        let place = state.and_then(|token| token.stream);
        if let Some(place) = place.as_ref().filter(|place| !place.holds(cursor)) {
            return Err(format!(
                "position {position} of epoch {} is outside the window of the state (positions {} to {} of epoch {}); use a \
                 state saved closer to it",
                cursor.epoch,
                place.first,
                place.end(),
                place.epoch
            )
            .into());
        }
        let place = place.filter(|_| position > 0);
        if count == 0 {
            return Err(
                "the state was saved before the first batch of its epoch, so there is no batch before it"
                    .into(),
            );
        }
        match lineage::which(&pipeline, cursor, place, count, &mut signals::interrupted)? {
            Some(samples) => self.print(&pipeline, &samples),
            None => Err(ClientError::Interrupted.into()),
        }
    }

    fn print(&self, pipeline: &Pipeline, samples: &[Named]) -> Result<(), Failure> {
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        let width = samples.iter().map(|sample| sample.key.chars().count()).max().unwrap_or(0).max(3);
        let is_labelled = pipeline.supply.is_labelled();
        if !self.json {
            let label = if is_labelled { "  label" } else { "" };
            writeln!(out, "{:>12}  {:<width$}{label}", "position", "key")?;
        }
        for Named { position, index, key, label } in samples {
            // A bad record has none either; another takes its place when it is its turn.
            let label = label.filter(|_| is_labelled);
            let class = label.and_then(|label| pipeline.supply.classes().get(usize::try_from(label).ok()?));
            if self.json {
                let line =
                    json!({"position": position, "index": index, "key": key, "label": label, "class": class});
                writeln!(out, "{line}")?;
            } else {
                let class = class.map(|class| format!(" ({class})")).unwrap_or_default();
                let label = label.map_or_else(String::new, |label| format!("  {label}"));
                writeln!(out, "{position:>12}  {key:<width$}{label}{class}")?;
            }
        }
        Ok(out.flush()?)
    }
}
