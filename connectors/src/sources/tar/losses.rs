//! What the shards of a source lack or have too much of, for the log and for those who want nothing to be missing.

use super::archive::Notes;
use crate::recognised::{grouped, printed};

/// Sums of the notes on each shard.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Losses {
    /// Members that were passed over, as a fact about the source.
    pub skipped: Option<String>,
    /// Keys without an image, as a sentence.
    pub imageless: Option<String>,
    /// What is probably missing, as a sentence.
    pub missing: Option<String>,
}

impl Losses {
    /// From the shards' names and notes.
    pub fn of(shards: impl Iterator<Item = (String, Notes)>) -> Self {
        let (mut skipped, mut example) = (0, String::new());
        let (mut imageless, mut imageless_example) = (0, String::new());
        let mut missing: Vec<String> = Vec::new();
        let (mut unended, mut joined) = (0, 0);
        for (name, notes) in shards {
            if skipped == 0 {
                example = notes.example;
            }
            skipped += notes.skipped;
            if imageless == 0 {
                imageless_example = notes.imageless_example;
            }
            imageless += notes.imageless;
            if let Some(members) = notes.unended {
                if unended == 0 {
                    missing.push(format!(
                        "{} ends without an end marker after {} members; if it was cut off, for example by a \
                         broken upload, records are missing: fetch or pack it again",
                        printed(&name),
                        grouped(members)
                    ));
                }
                unended += 1;
            }
            if notes.behind > 0 {
                if joined == 0 {
                    missing.push(format!(
                        "{} continues for {} bytes after its end marker, as concatenated archives do (cat); only \
                         the first one is read, as tar and WebDataset do: keep them as separate files",
                        printed(&name),
                        grouped(notes.behind)
                    ));
                }
                joined += 1;
            }
        }
        for (count, what) in [(unended, "end so"), (joined, "continue so")] {
            if count > 1 {
                missing.push(format!("{} shards {what}", grouped(count)));
            }
        }
        Self {
            skipped: (skipped > 0).then(|| {
                format!(
                    "{} links, devices and the like skipped (the first is {example})",
                    grouped(skipped)
                )
            }),
            imageless: (imageless > 0).then(|| {
                let (plural, are) = if imageless == 1 { ("", "has no image and is") } else { ("s", "have no image and are") };
                format!(
                    "{} key{plural} in the shards {are} skipped, like \"{}\"; set image to their ending if they \
                     should be records",
                    grouped(imageless),
                    printed(&imageless_example)
                )
            }),
            missing: (!missing.is_empty()).then(|| missing.join("; ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_each_kind_is_named_and_all_are_counted() {
        let whole = || ("a.tar".to_owned(), Notes::default());
        assert_eq!(Losses::of([whole()].into_iter()), Losses::default());
        let cut = |members| ("b.tar".to_owned(), Notes { unended: Some(members), ..Notes::default() });
        let more = || ("c.tar".to_owned(), Notes { behind: 10_240, ..Notes::default() });
        let odd = |skipped, example: &str| {
            ("d.tar".to_owned(), Notes { skipped, example: example.into(), ..Notes::default() })
        };
        let all = [
            whole(),
            odd(0, ""),
            cut(1234),
            more(),
            odd(3, "\"x\", a hard link"),
            odd(2, "\"y\", a pipe"),
            cut(9),
        ];
        let losses = Losses::of(all.into_iter());
        let skipped = losses.skipped.unwrap();
        assert!(skipped.starts_with("5 links") && skipped.contains("\"x\", a hard link"), "{skipped}");
        let missing = losses.missing.unwrap();
        for part in [
            "b.tar ends without an end marker after 1,234 members",
            "c.tar continues for 10,240 bytes",
            "2 shards end so",
        ] {
            assert!(missing.contains(part), "{missing}");
        }
        assert!(!missing.contains("continue so"), "{missing}");
        let keys = |imageless, example: &str| {
            let notes = Notes { imageless, imageless_example: example.into(), ..Notes::default() };
            ("e.tar".to_owned(), notes)
        };
        let said = Losses::of([whole(), keys(2, "x.txt"), keys(3, "y.txt")].into_iter()).imageless.unwrap();
        assert!(
            said.starts_with("5 keys in the shards have no image") && said.contains("like \"x.txt\""),
            "{said}"
        );
        let said = Losses::of([keys(1, "x.txt")].into_iter()).imageless.unwrap();
        assert!(said.starts_with("1 key in the shards has no image and is skipped"), "{said}");
    }
}
