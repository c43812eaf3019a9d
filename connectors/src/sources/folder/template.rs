//! Paths of files that belong to an image by its own path: `"../masks/{path}.png"`.
//!
//! | in the template | for `cat/7_image.jpg` |
//! |---|---|
//! | `{path}` | `cat/7_image` |
//! | `{dir}` | `cat` |
//! | `{stem}` | `7_image` |
//! | `{stem:_image=_mask}` | `7_mask` |
//!
//! What comes before the first placeholder is a folder, relative to the root; it alone may begin with `..`. No name of
//! an image leads out of it.

use crate::SourceError;

/// A template, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    /// Ends with a slash, or is empty.
    folder: String,
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Place { what: What, replace: Option<(String, String)> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Path,
    Dir,
    Stem,
}

/// Whether a text is meant for a template.
pub(crate) fn is_template(text: &str) -> bool {
    text.contains(['{', '}', '/'])
}

/// The folder that all files of a template are in, as it is written; empty for the root.
pub(crate) fn folder(text: &str) -> &str {
    let before = text.split('{').next().unwrap_or_default();
    before.rfind('/').map_or("", |slash| &before[..=slash])
}

/// The address of a folder of a template below that of the root, or beside it. `None` for one outside of the bucket.
pub(crate) fn below(root: &str, folder: &str) -> Option<String> {
    let (scheme, path) = root.split_once("://")?;
    let mut names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    for name in folder.split('/').filter(|name| !name.is_empty() && *name != ".") {
        match name {
            ".." => drop(names.pop()),
            name => names.push(name),
        }
        if names.is_empty() {
            return None;
        }
    }
    (!folder.starts_with('/')).then(|| format!("{scheme}://{}", names.join("/")))
}

impl Template {
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        let refuse = |why: &str| {
            Err(SourceError::config(format!(
                "part {text:?}: {why}; write a path relative to the folder with the images, with {{path}}, {{dir}} or \
                 {{stem}} of the image in it, like \"../masks/{{path}}.png\" or \"../masks/{{stem:_image=_mask}}.png\""
            )))
        };
        let folder = folder(text);
        if text.contains("://") {
            return refuse("it is an address");
        }
        if text.contains('\0') {
            return refuse("it has a NUL in it");
        }
        // Whoever says what may be read looks at the folder as far as its first star, say.
        let mut names = folder.split('/').filter(|name| *name != ".").skip_while(|name| *name == "..");
        if names.any(|name| name == "..") {
            return refuse("\"..\" may only come at the beginning");
        }
        let mut pieces = Vec::new();
        let mut rest = &text[folder.len()..];
        while let Some((before, after)) = rest.split_once('{') {
            let Some((place, behind)) = after.split_once('}') else {
                return refuse("a brace does not close");
            };
            let (name, replace) = match place.split_once(':') {
                Some((name, replace)) => (name, Some(replace)),
                None => (place, None),
            };
            let what = match name {
                "path" => What::Path,
                "dir" => What::Dir,
                "stem" => What::Stem,
                _ => return refuse(&format!("an image has no {{{name}}}")),
            };
            let replace = match replace.map(|replace| replace.split_once('=')) {
                None => None,
                Some(Some((from, to))) if !from.is_empty() => Some((from.to_owned(), to.to_owned())),
                Some(_) => return refuse("a replacement is written {stem:old=new}"),
            };
            if before.contains('}') {
                return refuse("a closing brace has no opening one");
            }
            pieces.push(Piece::Text(before.to_owned()));
            pieces.push(Piece::Place { what, replace });
            rest = behind;
        }
        if pieces.is_empty() {
            return refuse("it is the same for every image");
        }
        if rest.contains('}') {
            return refuse("a closing brace has no opening one");
        }
        pieces.push(Piece::Text(rest.to_owned()));
        let fixed: String =
            pieces.iter().map(|piece| if let Piece::Text(text) = piece { text } else { "x" }).collect();
        if fixed.split('/').any(|name| name == ".." || name == ".") {
            return refuse("\"..\" may only come at the beginning");
        }
        if fixed.ends_with('/') {
            return refuse("it names a folder");
        }
        Ok(Self { folder: folder.to_owned(), pieces })
    }

    /// The folder that all its files are in, relative to the root: empty, or with a slash at the end.
    pub fn folder(&self) -> &str {
        &self.folder
    }

    /// The file of an image, relative to the root; `stem` of the image's path are without its ending. `None` where
    /// the name makes no path in the template's folder.
    pub fn expand(&self, path: &[u8], stem: usize) -> Option<Vec<u8>> {
        let path = &path[..stem];
        let (dir, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&path[..0], path),
        };
        let mut below = Vec::with_capacity(self.folder.len() + path.len() + 32);
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => below.extend_from_slice(text.as_bytes()),
                Piece::Place { what, replace } => {
                    let value = match what {
                        What::Path => path,
                        What::Dir => dir,
                        What::Stem => name,
                    };
                    match replace {
                        None => below.extend_from_slice(value),
                        Some((from, to)) => replaced(value, from.as_bytes(), to.as_bytes(), &mut below),
                    }
                }
            }
        }
        // An image directly in the root has no {dir}.
        let names = below.split(|&byte| byte == b'/').filter(|name| !name.is_empty());
        let mut whole = self.folder.as_bytes().to_vec();
        for (at, name) in names.enumerate() {
            if name == b".." || name == b"." {
                return None;
            }
            if at > 0 {
                whole.push(b'/');
            }
            whole.extend_from_slice(name);
        }
        (whole.len() > self.folder.len()).then_some(whole)
    }
}

fn replaced(value: &[u8], from: &[u8], to: &[u8], out: &mut Vec<u8>) {
    let mut rest = value;
    while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    out.extend_from_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(template: &str, path: &str) -> Option<String> {
        let stem = path.rfind('.').unwrap();
        let made = Template::parse(template).unwrap().expand(path.as_bytes(), stem)?;
        Some(String::from_utf8(made).unwrap())
    }

    #[test]
    fn a_template_is_filled_in_with_what_the_image_is_called() {
        for (template, path, expected) in [
            ("../masks/{path}.png", "cat/7.jpg", "../masks/cat/7.png"),
            ("{dir}/masks/{stem}.png", "cat/7.jpg", "cat/masks/7.png"),
            ("{dir}/masks/{stem}.png", "7.jpg", "masks/7.png"),
            ("/data/{stem}.txt", "cat/7.b.jpg", "/data/7.b.txt"),
            (
                "../gtFine/{path:_leftImg8bit=_gtFine_labelIds}.png",
                "aachen/aachen_0_leftImg8bit.png",
                "../gtFine/aachen/aachen_0_gtFine_labelIds.png",
            ),
            ("{path:images=masks}.png", "images/images_1.jpg", "masks/masks_1.png"),
            ("{path}_mask.gif", "a.jpg", "a_mask.gif"),
        ] {
            assert_eq!(expand(template, path).as_deref(), Some(expected), "{template}");
        }
    }

    #[test]
    fn no_name_leads_out_of_the_folder() {
        assert_eq!(expand("m/{stem:_=.}", "__.jpg"), None);
        assert_eq!(expand("m/{stem:x=..}/a", "x.jpg"), None);
        assert_eq!(expand("m/{stem:x=/}", "x.jpg"), None);
        assert_eq!(expand("../m/{stem:x=/../../etc/}y", "x.jpg"), None);
    }

    #[test]
    fn a_folder_in_a_bucket_stays_in_it() {
        let below = |folder| below("s3://bucket/data/images/", folder);
        assert_eq!(below("../masks/").as_deref(), Some("s3://bucket/data/masks"));
        assert_eq!(below("masks/").as_deref(), Some("s3://bucket/data/images/masks"));
        assert_eq!(below("../../x/./").as_deref(), Some("s3://bucket/x"));
        assert_eq!((below("../../../x/"), below("/x/")), (None, None));
    }

    #[test]
    fn templates_that_make_no_sense_are_refused() {
        for (template, why) in [
            ("masks/a.png", "same for every image"),
            ("{name}.png", "an image has no {name}"),
            ("masks/{stem.png", "does not close"),
            ("masks/}{stem}.png", "has no opening one"),
            ("masks/{stem}}.png", "has no opening one"),
            ("{stem:a}.png", "{stem:old=new}"),
            ("{stem:=a}.png", "{stem:old=new}"),
            ("{dir}/../masks/{stem}.png", "only come at the beginning"),
            ("a*/../../../etc/{stem}.png", "only come at the beginning"),
            ("/data/../etc/{stem}.png", "only come at the beginning"),
            ("masks/{stem}/", "a folder"),
            ("s3://bucket/{stem}.png", "an address"),
        ] {
            let text = Template::parse(template).unwrap_err().to_string();
            assert!(text.contains(why) && text.contains(template), "{text}");
        }
    }
}
