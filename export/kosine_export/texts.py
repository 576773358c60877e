"""The texts that an export measures on: Korean, of every kind that has gone wrong somewhere.

They are this project's own sentences. `canary_texts` are the 64 that a bundle carries;
`parity_texts` adds lengths up to the model's limit, `calibration_texts` other languages.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    *("EVERYDAY", "calibration_texts", "canary_texts", "long_texts", "parity_texts"),
    "tokenizer_texts",
]

MANY_TOKENS = 1_024

EVERYDAY = (
    "한 남자가 기타를 치고 있다.",
    "남자가 악기를 연주하고 있다.",
    "비행기가 이륙하고 있다.",
    "아이들이 공원에서 축구를 한다.",
    "고양이가 창가에서 햇볕을 쬐며 자고 있다.",
    "여자가 부엌에서 양파를 썰고 있습니다.",
    "강아지에게 하루에 몇 번 밥을 줘야 하나요?",
    "강아지 예방접종은 언제부터 시작해야 하나요?",
    "상법 제651조의 내용은 무엇인가요?",
    "임대차 계약이 끝났는데 보증금을 돌려받지 못했습니다.",
    "주가가 사흘 연속 하락해 두 달 만에 최저치를 기록했다.",
    "정부는 내년도 예산안을 국회에 제출했다.",
    "파이썬으로 웹 서버를 만들어 본 경험이 있는 개발자를 찾습니다.",
    "리액트와 타입스크립트를 쓰는 프런트엔드 프로젝트입니다.",
    "오늘 서울의 낮 기온은 영상 12도까지 오르겠습니다.",
    "눈이 많이 와서 기차가 한 시간 늦게 도착했다.",
    "그 영화는 생각보다 훨씬 재미있었다.",
    "할머니는 매일 아침 시장에 가신다.",
    "두 마리의 개가 물가에서 뛰어놀고 있다.",
    "연구진은 새로운 백신의 임상 시험 결과를 발표했다.",
    "지하철 2호선이 신호 고장으로 멈춰 섰다.",
    "커피 한 잔 주세요.",
    "이 제품은 환불이 되나요?",
    "비밀번호를 잊어버렸어요. 어떻게 해야 하나요?",
    "경찰은 도난 차량을 이틀 만에 찾아냈다.",
    "소년이 나무 위로 올라가고 있다.",
    "그녀는 첼로를 켜며 노래를 부른다.",
    "물고기가 어항 속을 헤엄친다.",
    "대통령이 유럽 순방길에 올랐다.",
    "도서관은 월요일마다 문을 닫는다.",
)

AWKWARD = (
    "",
    " ",
    "\t\n  \u3000",
    "가",
    "네.",
    "ㅋㅋㅋㅋㅋ ㅠㅠ",
    "각",  # NFD below is this syllable taken apart
    "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "한국어와 English가 섞인 문장 with 숫자 12345 그리고 日本語.",
    "이모지 🙂👍🏽👨‍👩‍👧‍👦 포함",
    "줄바꿈이\n있는\r\n문장",
    "넓은\u00a0공백과\u3000전각 공백",
    "보이지\u200b않는\u200d글자\ufeff들",
    "제어\x07문자\x1b[0m",
    "특수 [SEP] 토큰 [MASK] 흉내 [CLS]",
    "빈칸 [PAD] 토큰",
    "가나다라마바사아자차카타파하" * 8,  # one word of over 100 characters
    "ＡＢＣ１２３ 전각 문자",
    "Ünïcödé diäcritics and café",
    "RTL: שלום عربى 안녕",
    "https://example.com/a?b=c&d=%ED%95%9C#x",
    "!!!???...,,,;;;:::",
    "“따옴표”와 ‘작은따옴표’ — 줄표…",
    "한자 大韓民國 憲法 第一條",
    "가격은 ₩12,000(부가세 포함)입니다.",
    "A" * 90,
    "𠮷野家에서 밥을 먹었다",
    "수식 x² + y² = z², ∑ᵢ aᵢ ≤ ∞",
)

LONGER = (
    "법원은 원고가 제출한 증거만으로는 피고의 과실을 인정하기 어렵다고 보아 청구를 기각하였다.",
    "이 조항은 보험계약자 또는 피보험자가 고의나 중대한 과실로 중요한 사항을 알리지 아니한 때에 "
    "보험자가 계약을 해지할 수 있음을 정한다.",
    "어제 저녁부터 내린 비로 강물이 불어나 마을 주민 삼십여 명이 가까운 초등학교 체육관으로 "
    "대피했다가 오늘 아침에야 집으로 돌아갔다.",
    "회사는 올해 안에 새로운 결제 서비스를 내놓을 계획이며, 이를 위해 백엔드와 데이터 분야의 "
    "개발자를 스무 명 더 뽑기로 했다고 밝혔다.",
    "산책을 싫어하는 강아지는 먼저 집 안에서 목줄에 익숙해지게 한 뒤, 사람이 적은 시간에 짧게 "
    "나가는 것부터 시작하는 편이 좋습니다.",
    "선생님은 학생들에게 책을 한 권씩 나누어 주면서 다음 주까지 읽고 느낀 점을 한 쪽으로 "
    "정리해 오라고 하셨다.",
)

ENGLISH = (
    "A man is playing a guitar on stage.",
    "Two dogs are running along the beach.",
    "The train was an hour late because of the snow.",
    "How do I reset my password?",
    "My order arrived broken. Can I get a refund?",
    "The central bank left interest rates unchanged on Thursday.",
    "She has been teaching mathematics at this school for twenty years.",
    "What are the symptoms of a vitamin D deficiency?",
    "The court held that the contract had been breached by the seller.",
    "Preheat the oven to 180 degrees and grease a small pan.",
    "The striker scored twice in the second half.",
    "Water boils at a lower temperature on top of a mountain.",
    "We are looking for a backend developer with experience in Go and PostgreSQL.",
    "I would not recommend this hotel: the rooms are loud and the staff is rude.",
    "The novel tells the story of three sisters during the war.",
    "def mean(values): return sum(values) / len(values)",
    "Which bus goes to the airport?",
    "Researchers have found a new species of frog in the rain forest.",
    "The parliament will vote on the budget next week.",
    "Please find the invoice for October attached to this message.",
    "A child in a red jacket is climbing over a fence.",
    "This function raises a TypeError when the argument is None.",
    "The old bridge across the river was closed after the flood.",
    "Thanks, that works!",
)
OTHERS = (
    "Ein Hund läuft über die Wiese und bellt.",
    "Die Mieterin hat die Wohnung fristgerecht gekündigt.",
    "Wie lange dauert der Versand nach Österreich?",
    "Der Zug nach Hamburg fällt heute leider aus.",
    "Une femme coupe des oignons dans la cuisine.",
    "Le gouvernement a présenté son projet de loi hier soir.",
    "Comment puis-je changer mon adresse de livraison ?",
    "Le musée est fermé tous les mardis.",
    "Un niño está jugando con una pelota en el parque.",
    "Los precios de la vivienda subieron un cinco por ciento este año.",
    "¿Dónde puedo descargar mi factura?",
    "A empresa anunciou a abertura de duas novas fábricas.",
    "O voo atrasou três horas por causa do nevoeiro.",
    "Quali documenti servono per aprire un conto?",
    "De winkel is op zondag gesloten.",
    "Pociąg do Krakowa odjeżdża z peronu trzeciego.",
    "Bu ürünü nasıl iade edebilirim?",
    "Tôi muốn đặt một bàn cho hai người vào tối nay.",
    "Harga beras naik menjelang hari raya.",
    "Мужчина чинит велосипед во дворе.",
    "Суд отложил рассмотрение дела до следующего месяца.",
    "Скільки коштує квиток до Львова?",
    "猫が窓辺で昼寝をしている。",
    "この商品の返品はできますか。",
    "来月から電気料金が値上げされる見通しだ。",
    "新しい図書館は駅から歩いて五分の所にある。",
    "一个男人正在弹吉他。",
    "如何修改我的登录密码?",
    "研究人员发表了新疫苗的试验结果。",
    "明天上海有小雨,气温下降。",
    "يلعب الأطفال كرة القدم في الحديقة.",
    "كيف يمكنني إلغاء الطلب؟",
    "החנות נפתחת בשעה תשע בבוקר.",
    "एक आदमी नदी के किनारे बैठा है।",
    "मेरा पासवर्ड काम नहीं कर रहा है।",
    "วันนี้อากาศร้อนมาก",
)


def canary_texts() -> list[str]:
    """64 texts. The first sixteen are short, for the replay that every load makes."""
    quick = [*EVERYDAY[:8], *AWKWARD[:6], AWKWARD[8], AWKWARD[14]]
    rest = [text for text in (*EVERYDAY, *AWKWARD, *LONGER) if text not in quick]
    return [*quick, *rest][:64]


def calibration_texts() -> list[str]:
    """What integer ranges are made from: a model's users need not write what it was tried on."""
    return [*canary_texts(), *ENGLISH, *OTHERS]


def long_texts(lengths: Iterable[int]) -> list[str]:
    """Texts of at least so many words each, all different, made of whole sentences."""
    texts = []
    for number, length in enumerate(lengths):
        words = " ".join((*LONGER[number % 6 :], *EVERYDAY[number % 30 :], *EVERYDAY)).split()
        texts.append(" ".join((words * (length // len(words) + 1))[:length]))
    return texts


def parity_texts(max_tokens: int) -> list[str]:
    """The canary's texts and a ladder of lengths up to beyond `max_tokens`.

    Few are long: at 8,192 tokens one takes PyTorch and ONNX Runtime a minute of a CPU each. An
    encoder that takes so many has one text between the short ones and the longest.
    """
    lengths = (2, 3, 5, 9, 15, 24, 40, 64, 90, 128)
    longer = (200, 300, 400, 700) if max_tokens <= MANY_TOKENS else (500,)
    ladder = [n for n in (*lengths, *longer) if n <= max_tokens]
    return [*canary_texts(), *long_texts([*ladder, max_tokens])]


def tokenizer_texts() -> list[str]:
    """Texts that only token ids are compared on: blanks in every place, other forms and scripts."""
    return [
        *(f"{before}가나 abc{after}" for before, after in ((" ", ""), ("", " "), ("\n", "\n "))),
        "blanks   between  words",
        "one line\nand another\r\n\r\nand\ta tab",
        "끝에 빈칸이 많은 문장   ",
        "end\u00a0",
        "\u3000始",
        "\u1100\u1161\u11a8 e\u0301 か\u3099",  # decomposed: Hangul, Latin, kana
        "ﾊﾟﾋﾟ ﬁ ㈜ ½ ™ Ⅳ ①",
        "<s> 가 </s><pad> <unk> a<mask> b",
        "[CLS]가[SEP] [PAD][UNK] a [MASK] b",
        "##가 ▁가 ▁",
        "The quick brown fox jumps over the lazy dog.",
        "Don't can't we'll I'm",
        "東京は日本の首都です。",
        "今天天气很好，我们去公园散步。",
        "ประเทศไทยมีอากาศร้อน",
        "مرحبا بالعالم",
        "Привет, мир! Ёлка",
        "नमस्ते दुनिया",
        "Größe STRASSE İstanbul ΑΣ",
        "👩\u200d👩\u200d👧 🏳️\u200d🌈 🇰🇷",
        "a\u200bb\u00adc\ufeffd\u2060e",
        "\x01\x7f\x85 \ufffd",
        "𝔞𝔟 𠮷 \U0001f9ff",
    ]
