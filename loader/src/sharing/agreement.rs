//! That the processes of a job ask for the same: each makes its Loaders in the same order, and those of one number must
//! have one pipeline, or ranks would train on rows that overlap, or miss some.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use crate::config::{PipelineConfig, Sampling};
use crate::protocol::{ErrorKind, Member};
use crate::refusal::Refusal;

/// What each process may choose for itself: it changes no row.
const OWN: [&str; 6] = ["finish", "num_workers", "prefetch_factor", "quarantine", "read", "read_ahead_bytes"];

/// Differences that are named.
const MOST: usize = 3;

/// What is longer is cut.
const LONGEST: usize = 100;

/// What the processes of a job have asked for, by the Loader's number.
#[derive(Default)]
pub(crate) struct Agreement(Mutex<HashMap<u64, Parties>>);

/// Processes, and what each has asked for, as long as it lives.
type Parties = Vec<(u64, Weak<Value>)>;

/// A process's part in an agreement, as long as it lives.
pub(crate) struct Party(#[expect(dead_code, reason = "others look at it as long as it is here")] Arc<Value>);

impl Agreement {
    /// Takes part with a pipeline for so many ranks.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when another process has asked for another one, with the difference.
    pub fn join(
        &self,
        config: &PipelineConfig,
        world_size: u64,
        member: &Member,
    ) -> Result<Option<Party>, Refusal> {
        let Some(loader) = member.loader else { return Ok(None) };
        let asked = Arc::new(asked(config, world_size));
        let mut loaders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        loaders.retain(|_, parties| {
            parties.retain(|(_, asked)| asked.strong_count() > 0);
            !parties.is_empty()
        });
        let parties = loaders.entry(loader).or_default();
        for (other, theirs) in parties.iter().filter(|(other, _)| *other != member.process) {
            let Some(theirs) = theirs.upgrade() else { continue };
            if let Some(differences) = differences(&asked, &theirs) {
                return Err(Refusal::new(
                    ErrorKind::Config,
                    format!(
                        "process {} and process {other} of this job disagree about their Loader number {}: \
                         {differences}. Make the same Loaders in the same order in all of them; one for a single \
                         process takes rank=0, world_size=1",
                        member.process,
                        loader + 1,
                    ),
                ));
            }
        }
        parties.push((member.process, Arc::downgrade(&asked)));
        Ok(Some(Party(asked)))
    }
}

/// A pipeline as all processes must have it. Files of weights and of an order are read for it: they do not stay.
pub(super) fn asked(config: &PipelineConfig, world_size: u64) -> Value {
    let mut asked = serde_json::to_value(config).expect("configuration is plain data");
    let fields = asked.as_object_mut().expect("a pipeline has keys");
    OWN.iter().for_each(|key| drop(fields.remove(*key)));
    fields.insert("world_size".into(), world_size.into());
    // A list of numbers comes in a file of each process's own.
    if let Some((key, file)) = config.sampling.as_ref().and_then(Sampling::file)
        && let Ok(bytes) = std::fs::read(file)
        && let Some(Value::Object(sampling)) = fields.get_mut("sampling")
    {
        sampling.insert(key.into(), format!("numbers with hash {:016x}", xxh3_64(&bytes)).into());
    }
    asked
}

/// Where a pipeline differs from another one, if it does: the first few places.
pub(super) fn differences(here: &Value, there: &Value) -> Option<String> {
    let mut differences = Vec::new();
    differ("", here, there, &mut differences);
    let more = differences.len().saturating_sub(MOST);
    differences.truncate(MOST);
    if more > 0 {
        differences.push(format!("{more} more"));
    }
    (!differences.is_empty()).then(|| differences.join("; "))
}

/// Adds where two values differ, as "seed is 1 in one, 2 in the other", leaf by leaf.
fn differ(at: &str, here: &Value, there: &Value, differences: &mut Vec<String>) {
    match (here, there) {
        (Value::Object(here), Value::Object(there)) => {
            let keys = here.keys().chain(there.keys().filter(|key| !here.contains_key(*key)));
            for key in keys {
                let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                differ(
                    &path,
                    here.get(key).unwrap_or(&Value::Null),
                    there.get(key).unwrap_or(&Value::Null),
                    differences,
                );
            }
        }
        (Value::Array(here), Value::Array(there)) if here.len() == there.len() => {
            for (number, (here, there)) in here.iter().zip(there).enumerate() {
                differ(&format!("{at}[{number}]"), here, there, differences);
            }
        }
        _ if here == there => {}
        _ => differences.push(format!("{at} is {} here, {} there", shown(here), shown(there))),
    }
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::Null => "nothing".into(),
        value => value.to_string(),
    };
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pipeline(change: &Value) -> PipelineConfig {
        let mut config = json!({
            "source": {"type": "synthetic", "count": 9},
            "transforms": [{"type": "Resize", "size": [8, 8]}],
            "seed": 3,
        });
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        PipelineConfig::from_json(config).unwrap()
    }

    fn member(process: u64, loader: u64) -> Member {
        Member { process, processes: 4, here: 4, loader: Some(loader) }
    }

    #[test]
    fn processes_that_ask_for_something_else_hear_what_differs() {
        let agreement = Agreement::default();
        let join = |process, loader, change: Value| {
            agreement.join(&pipeline(&change), 4, &member(process, loader)).map_err(|error| error.message)
        };
        let first = join(0, 0, json!({})).unwrap();
        let second = join(1, 0, json!({"num_workers": 3, "prefetch_factor": 9})).unwrap();
        for (change, named) in [
            (json!({"seed": 4}), "seed is 4 here, 3 there"),
            (json!({"batch_size": 8}), "batch_size is 8 here, 1 there"),
            (json!({"source": {"type": "synthetic", "count": 8}}), "source.count is 8 here, 9 there"),
            (
                json!({"transforms": [{"type": "Resize", "size": [8, 9]}]}),
                "transforms[0].size[1] is 9 here, 8 there",
            ),
        ] {
            let refused = join(2, 0, change).err().unwrap();
            assert!(refused.contains(named) && refused.contains("Loader number 1"), "{refused}");
        }
        let _another = join(2, 1, json!({"seed": 4})).unwrap();
        drop((first, second));
        assert!(join(2, 0, json!({"seed": 4})).is_ok(), "nobody is left to disagree with");
    }
}
