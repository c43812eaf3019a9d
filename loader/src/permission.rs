//! What a client's own pipeline may read and write on a daemon that serves several: nothing but what lies below the
//! daemon's roots, and nothing at all. Pipelines of the daemon's own configuration may do what that says.

use std::path::{Component, Path, PathBuf};

use fuelrail_connectors::shown;

use crate::config::{PipelineConfig, Sampling};
use crate::protocol::ErrorKind;
use crate::refusal::Refusal;

/// The pipeline as it may be opened: with its addresses resolved, so that what is opened is what was looked at.
///
/// # Errors
/// [`ErrorKind::Config`] with what may not be read or written, and where that can be allowed.
pub(crate) fn grant(roots: &[PathBuf], mut config: PipelineConfig) -> Result<PipelineConfig, Refusal> {
    if let Some(path) = &config.quarantine {
        let message = format!(
            "quarantine: this daemon writes no file for a client's own pipeline ({}); leave it out, or name the list in \
             a pipeline of the daemon's configuration",
            shown(&path)
        );
        return Err(Refusal::new(ErrorKind::Config, message));
    }
    let sampled = config.sampling.as_ref().and_then(Sampling::file);
    let sampled = sampled.map(|(_, file)| file.to_string_lossy().into_owned());
    writes_nothing(&config)?;
    config.source = config.source_of_fields();
    readable(roots, config.source.locations().into_iter().chain(sampled))?;
    // An address may look at its own place now, to find out what it is and what its options name.
    config.source = config.source.resolve().map_err(Refusal::of_source)?;
    writes_nothing(&config)?;
    readable(roots, config.source.locations())?;
    Ok(config)
}

fn writes_nothing(config: &PipelineConfig) -> Result<(), Refusal> {
    match config.source.writes() {
        None => Ok(()),
        Some(key) => Err(Refusal::new(
            ErrorKind::Config,
            format!(
                "source.{key}: this daemon writes copies only where its own configuration says; leave it out"
            ),
        )),
    }
}

/// Whether all of these lie below a root, symbolic links resolved.
fn readable(roots: &[PathBuf], locations: impl IntoIterator<Item = String>) -> Result<(), Refusal> {
    for location in locations {
        if !roots.iter().any(|root| is_below(root, &location)) {
            return Err(Refusal::new(
                ErrorKind::Config,
                format!(
                    "this daemon does not let clients read {location}: name a folder above it with --root (or `roots` in \
                     its configuration), or attach to one of its pipelines by name"
                ),
            ));
        }
    }
    Ok(())
}

/// Whether a location of a source lies below a root: a URL below a URL, a path below a folder with links resolved.
fn is_below(root: &Path, location: &str) -> bool {
    if location.contains("://") {
        let root = root.to_string_lossy();
        let root = root.trim_end_matches('/');
        // No "..", which some servers resolve.
        return root.contains("://")
            && !location.split('/').any(|part| part == ".." || part.to_ascii_lowercase().contains("%2e%2e"))
            && location.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    }
    // Of a pattern, what comes before its first brace or star; ".." behind that is refused when it is opened.
    let fixed = match location.find(['{', '*', '?']) {
        Some(special) => Path::new(&location[..location[..special].rfind('/').unwrap_or(0)]),
        None => Path::new(location),
    };
    // What does not exist cannot be resolved. It is compared as it is, so that the client hears that it is missing, but
    // not with ".." in it, which would tell what exists elsewhere.
    let plain = !fixed.components().any(|part| part == Component::ParentDir);
    let path = fixed.canonicalize().ok().or_else(|| plain.then(|| fixed.to_path_buf()));
    root.canonicalize().is_ok_and(|root| path.is_some_and(|path| path.starts_with(root)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_below_a_root_after_links_and_dots() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::create_dir(folder.path().join("other")).unwrap();
        std::os::unix::fs::symlink(folder.path().join("other"), root.join("link")).unwrap();
        for (location, expected) in [
            ("root", true),
            ("root/a", true),
            ("root/a/b/*.tar", true),
            ("root/{a,b}/x-{00..10}.tar", true),
            ("root/nothing/there", true),
            ("root/a/../a", true),
            ("root/a/../../other", false),
            ("root/nothing/../../other", false),
            ("root/link", false),
            ("root/link/*.tar", false),
            ("other", false),
            ("rooted", false),
        ] {
            let path = folder.path().join(location);
            assert_eq!(is_below(&root, path.to_str().unwrap()), expected, "{location}");
        }
    }

    #[test]
    fn a_url_is_below_a_url_by_its_parts() {
        let root = Path::new("s3://bucket/data/");
        for (location, expected) in [
            ("s3://bucket/data", true),
            ("s3://bucket/data/x.tar", true),
            ("s3://bucket/database/x.tar", false),
            ("s3://bucket/data/../x.tar", false),
            ("s3://bucket/data/%2E%2e/x.tar", false),
            ("gs://bucket/data/x.tar", false),
            ("/bucket/data", false),
        ] {
            assert_eq!(is_below(root, location), expected, "{location}");
        }
        assert!(!is_below(Path::new("/data"), "s3://bucket/data"));
    }
}
