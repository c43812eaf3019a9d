//! No memory between records: whatever a thread did before, a record's bytes and verdict are those that it has alone in
//! a fresh one. The inputs are odd on purpose: streams that lean on tables they do not bring, cut ones, and every kind
//! of coding, each after each.

use std::cell::RefCell;
use std::sync::OnceLock;

use turbojpeg_sys as tj;

use super::*;
use crate::decode::gif::tests::Picture as GifPicture;
use crate::decode::jpeg::tests::{HUFFMAN, QUANTIZATION, encode_as, without};

/// A TIFF file of RGB pixels in one strip.
pub(super) fn tiff(pixels: &[u8], w: usize, h: usize) -> Vec<u8> {
    let mut out = b"II*\0\x08\0\0\0".to_vec();
    let entries: [(u16, u32); 9] = [
        (256, w as u32),
        (257, h as u32),
        (258, 8),
        (259, 1),
        (262, 2),
        (273, 8 + 2 + 9 * 12 + 4),
        (277, 3),
        (278, h as u32),
        (279, pixels.len() as u32),
    ];
    out.extend((entries.len() as u16).to_le_bytes());
    for (tag, value) in entries {
        out.extend(tag.to_le_bytes());
        out.extend([4, 0, 1, 0, 0, 0]);
        out.extend(value.to_le_bytes());
    }
    out.extend([0; 4]);
    out.extend(pixels);
    out
}

/// A GIF whose frame of 20 x 20 lies at (4, 3), on a screen of `w` x `h`, with a palette shorter than its indices
/// reach.
fn gif(w: u16, h: u16) -> Vec<u8> {
    let palette = vec![[9, 8, 7], [200, 100, 50], [30, 60, 90], [1, 2, 3]];
    GifPicture { screen: (w, h), place: [4, 3, 20, 20], palette, local: false, interlaced: false }.plain()
}

/// Records and their names: JPEG streams first.
fn menu() -> &'static [(String, Vec<u8>)] {
    static MENU: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    MENU.get_or_init(|| {
        let mut menu = jpegs();
        let pixels = picture(40, 30, 9);
        for (name, bytes) in [
            ("png", save(&pixels, 40, 30, ExtendedColorType::Rgb8, ImageFormat::Png)),
            ("gray png", save(&pixels[..1200], 40, 30, ExtendedColorType::L8, ImageFormat::Png)),
            ("bmp", save(&pixels, 40, 30, ExtendedColorType::Rgb8, ImageFormat::Bmp)),
            ("webp", save(&pixels, 40, 30, ExtendedColorType::Rgb8, ImageFormat::WebP)),
            ("pnm", save(&pixels, 40, 30, ExtendedColorType::Rgb8, ImageFormat::Pnm)),
            ("tiff", tiff(&pixels, 40, 30)),
            ("gif", gif(40, 30)),
            ("gif without a screen", gif(0, 0)),
        ] {
            menu.push((format!("{name}, cut"), bytes[..bytes.len() / 2].to_vec()));
            menu.push((name.into(), bytes));
        }
        menu.push(("text".into(), b"hello".to_vec()));
        menu
    })
}

fn jpegs() -> Vec<(String, Vec<u8>)> {
    let styles = [
        ("plain", PLAIN),
        ("4:4:4", Style { sampling: tj::TJSAMP_TJSAMP_444, quality: 50, ..PLAIN }),
        ("4:1:1", Style { sampling: tj::TJSAMP_TJSAMP_411, ..PLAIN }),
        ("4:4:0", Style { sampling: tj::TJSAMP_TJSAMP_440, quality: 70, ..PLAIN }),
        ("gray", Style { sampling: tj::TJSAMP_TJSAMP_GRAY, ..PLAIN }),
        ("optimized", Style { optimized: true, quality: 30, ..PLAIN }),
        ("progressive", Style { progressive: true, ..PLAIN }),
        ("restarts", Style { restart: 2, ..PLAIN }),
        ("progressive with restarts", Style { progressive: true, restart: 3, ..PLAIN }),
        ("arithmetic", Style { arithmetic: true, ..PLAIN }),
    ];
    let mut menu: Vec<_> =
        styles.iter().map(|(name, style)| ((*name).to_owned(), encode(48, 40, 3, *style))).collect();
    let inks: Vec<u8> = picture(40, 30, 7).into_iter().chain([9; 40 * 30]).collect();
    for (name, space) in [("CMYK", tj::TJCS_TJCS_CMYK), ("YCCK", tj::TJCS_TJCS_YCCK)] {
        let style = Style { sampling: tj::TJSAMP_TJSAMP_444, ..PLAIN };
        menu.push((name.into(), encode_as(&inks, 40, 30, tj::TJPF_TJPF_CMYK, style, Some(space))));
    }
    for at in [0, 4, 5, 6, 7] {
        let (name, bytes) = menu[at].clone();
        menu.push((format!("{name} without Huffman tables"), without(&bytes, &[HUFFMAN])));
        menu.push((format!("{name} without quantization tables"), without(&bytes, &[QUANTIZATION])));
        menu.push((format!("{name} without any tables"), without(&bytes, &[HUFFMAN, QUANTIZATION])));
        menu.push((format!("{name}, cut"), bytes[..bytes.len() * 3 / 4].to_vec()));
        menu.push((
            format!("{name}, cut and ended"),
            [&bytes[..bytes.len() * 3 / 4], &[0xFF, 0xD9]].concat(),
        ));
        menu.push((format!("{name} without its end"), bytes[..bytes.len() - 2].to_vec()));
    }
    let plain = &menu[0].1;
    let frame = plain.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    menu.push(("tables only".into(), [&plain[..frame], &[0xFF, 0xD9]].concat()));
    menu
}

/// Chains that use every buffer and step.
fn chains() -> Vec<Chain> {
    let normal = json!({"type": "Normalize", "mean": [0.5], "std": [0.5]});
    let float = OutputConfig { dtype: Some(Dtype::F16), ..OutputConfig::default() };
    vec![
        u8_chain(json!([{"type": "CenterCrop", "size": [30, 40]}])),
        u8_chain(json!([{"type": "RandomResizedCrop", "size": 24}, {"type": "RandomHorizontalFlip"}])),
        chain_with(
            json!([
                {"type": "Resize", "size": [20, 33], "interpolation": "bicubic"},
                {"type": "RandomRotation", "degrees": 40, "interpolation": "bilinear"},
                {"type": "Pad", "padding": 3, "padding_mode": "reflect"},
                {"type": "RandomVerticalFlip"},
                {"type": "GaussianBlur", "kernel_size": 3},
                {"type": "ColorJitter", "brightness": 0.4, "contrast": 0.3, "saturation": 0.3, "hue": 0.2},
                {"type": "GaussianNoise"},
                {"type": "RandomGrayscale", "p": 0.5},
                {"type": "RandomCrop", "size": 17},
                normal,
                {"type": "RandomErasing", "p": 0.5, "value": "random"},
            ]),
            float,
        ),
    ]
}

type Verdict = Result<Vec<u8>, SampleError>;

/// The row or the refusal of a record; whatever the row held before must not show.
fn verdict(chain: &Chain, record: usize, garbage: u8, scratch: &mut Scratch) -> Verdict {
    let mut row = vec![garbage; chain.output().row_bytes()];
    chain.apply(&menu()[record].1, at(record as u64), scratch, &mut row).map(|()| row)
}

/// For each chain and record: what it is in a thread that has done nothing else.
fn alone() -> &'static (Vec<Chain>, Vec<Vec<Verdict>>) {
    static ALONE: OnceLock<(Vec<Chain>, Vec<Vec<Verdict>>)> = OnceLock::new();
    ALONE.get_or_init(|| {
        let chains = chains();
        let fresh = |chain: &Chain, record| {
            std::thread::scope(|scope| {
                scope.spawn(|| verdict(chain, record, 0, &mut Scratch::default())).join().unwrap()
            })
        };
        let verdicts =
            chains.iter().map(|chain| (0..menu().len()).map(|record| fresh(chain, record)).collect());
        let verdicts = verdicts.collect();
        (chains, verdicts)
    })
}

#[test]
fn the_menu_has_good_and_bad_records() {
    let (_, verdicts) = alone();
    let good: Vec<_> = menu().iter().zip(&verdicts[0]).filter(|(_, verdict)| verdict.is_ok()).collect();
    assert!(good.len() > 25 && menu().len() - good.len() > 20, "{} of {}", good.len(), menu().len());
    // The streams that lean on tables are worth something only if they are what they should be.
    let of = |name: &str| {
        let record = menu().iter().position(|(other, _)| other == name).unwrap();
        verdicts[0][record].clone()
    };
    assert_eq!(of("plain without Huffman tables").unwrap(), of("plain").unwrap());
    assert!(of("plain without quantization tables").is_err());
}

#[test]
fn every_record_after_every_other_is_as_if_it_were_alone() {
    let (chains, verdicts) = alone();
    let mut scratch = Scratch::default();
    for (chain, expected) in chains.iter().zip(verdicts).take(2) {
        for first in 0..menu().len() {
            for (second, expected) in expected.iter().enumerate() {
                let _ = verdict(chain, first, 0x55, &mut scratch);
                assert!(
                    verdict(chain, second, 0xAA, &mut scratch) == *expected,
                    "\"{}\" after \"{}\"",
                    menu()[second].0,
                    menu()[first].0
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn any_sequence_of_records_and_chains_gives_each_what_it_has_alone(
        sequence in prop::collection::vec((0usize..3, any::<prop::sample::Index>(), any::<u8>()), 1..14),
    ) {
        let (chains, verdicts) = alone();
        let mut scratch = Scratch::default();
        for (chain, record, garbage) in sequence {
            let record = record.index(menu().len());
            let found = verdict(&chains[chain], record, garbage, &mut scratch);
            prop_assert!(found == verdicts[chain][record], "{} by chain {chain}", menu()[record].0);
        }
    }
}

thread_local! {
    /// As a worker keeps it.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[test]
fn one_thread_or_eight_give_the_same() {
    let (chains, verdicts) = alone();
    for threads in [1, 8] {
        std::thread::scope(|scope| {
            for thread in 0..threads {
                scope.spawn(move || {
                    let count = chains.len() * menu().len();
                    for turn in 0..2 * count {
                        // Another order in each thread: 7919 is a prime, so every pair comes.
                        let pair = (turn * 7919 + thread * 37) % count;
                        let (chain, record) = (pair % chains.len(), pair / chains.len());
                        let found = SCRATCH.with_borrow_mut(|scratch| {
                            verdict(&chains[chain], record, thread as u8, scratch)
                        });
                        assert!(found == verdicts[chain][record], "{} in thread {thread}", menu()[record].0);
                    }
                });
            }
        });
    }
}
