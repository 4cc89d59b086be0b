// What people who use a layout can type with it.

export const LAYOUTS = { German: "de", French: "fr", "French with œ": "fr(oss)", "US-international": "us(intl)" };

/** Characters that each set must have at the least, so that a broken keymap does not pass for a small one. */
const NEEDED = {
  German: "abcdefghijklmnopqrstuvwxyzäöüßABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÜẞ0123456789^°!\"²§³$%&/{([)]=}?\\`´@€+*~#'<>|,;.:-_µéèêáàâíìîóòôúùûÉÈÊ",
  French: "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789²&é~\"#'{([-|è`_\\ç^à@)]°=+}¨$£¤ù%*µ,?;.:/!§<>€âêîôûÂÊÎÔÛäëïöüÿÄËÏÖÜŸ«»æÆ",
  "French with œ": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789&é\"'(-è_çà)=^$ù*,;:!~#{[|`\\@]}¨£%µ?./§<>€âêîôûÂÊÎÔÛäëïöüÿÄËÏÖÜŸœŒæÆ«»ÀÉÈÇÙ",
  "US-international": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789`~!@#$%^&*()-_=+[{]}\\|;:'\",<.>/?áéíóúýÁÉÍÓÚÝàèìòùÀÈÌÒÙâêîôûÂÊÎÔÛãñõÃÑÕäëïöüÿÄËÏÖÜçÇåÅæÆøØßðÐþÞ¡¿«»€£¥§©®°µ¶²³¹¼½¾×÷¬¤",
};

/** Letters of Latin-1 and Latin Extended-A: what dead keys are for in these languages. */
const ACCENTED = /^[\u00c0-\u017f^`~"'´¨¸]$/;

/** Every character of a layout: all that one key makes, and all accented letters that a dead key and a letter make. */
export function charactersOf(name, keymap) {
  const all = [...keymap.ways].filter(([character, strokes]) => strokes.length === 1 || ACCENTED.test(character)).map(([character]) => character);
  const missing = [...NEEDED[name]].filter((character) => !all.includes(character));
  if (missing.length > 0) throw new Error(`the layout ${name} has no keys for ${missing.join(" ")}`);
  // The second French layout is there for the few letters that the first one lacks.
  return name === "French with œ" ? [...NEEDED[name]] : all;
}

/** Japanese as an input method commits it, with what it composes before. */
export const JAPANESE = [
  { steps: ["ｎ", "に", "にｈ", "にほ", "にほん", "にほんご"], commit: "日本語" },
  { steps: ["か", "かｎ", "かん", "かんじ"], commit: "漢字" },
  { steps: ["ｋ", "か", "かた", "かたか", "かたかな"], commit: "カタカナ" },
  { steps: ["ひらがな"], commit: "ひらがな" },
];
const KANA = { hiragana: [0x3041, 0x3096], katakana: [0x30a1, 0x30fa] };

/** All kana, the marks that go with them, and the signs of Japanese keyboards, as one committed text each. */
export const JAPANESE_COMMITS = [
  ...Object.values(KANA).map(([first, last]) => String.fromCodePoint(...Array.from({ length: last - first + 1 }, (_, at) => first + at))),
  "ー・、。「」『』【】々〆〇゛゜ゝゞヽヾ",
  "！＂＃＄％＆＇（）＊＋，－．／０１２３４５６７８９：；＜＝＞？＠［＼］＾＿｀｛｜｝～￥",
  "ＡＢＣＤＥＦＧＨＩＪＫＬＭＮＯＰＱＲＳＴＵＶＷＸＹＺａｂｃｄｅｆｇｈｉｊｋｌｍｎｏｐｑｒｓｔｕｖｗｘｙｚ",
  "ｱｲｳｴｵｶｷｸｹｺｻｼｽｾｿﾀﾁﾂﾃﾄﾅﾆﾇﾈﾉﾊﾋﾌﾍﾎﾏﾐﾑﾒﾓﾔﾕﾖﾗﾘﾙﾚﾛﾜｦﾝｧｨｩｪｫｬｭｮｯｰﾞﾟ｡｢｣､･",
  "一丁七万三上下不世両並中丸主久之予争事二五井交人今仏仕他付代以仮仲件任休会伝位低住佐体何余作佳使例",
  "吾輩は猫である。名前はまだ無い。鬱𠮟麒麟憂醤油𩸽",
];
