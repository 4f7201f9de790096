"""The words that questions are made of, and the noise around them. Data only; `corpus` says how it is used."""

from __future__ import annotations

# $NAME in intents.txt or below stands for one of these.
WORDS = {
    "HOW": (
        "how {do|can|could|would|should} i|how {do|can} we|how to|how does one|what do i {do|need} to|what is "
        "the {way|best way|easiest way|command} to|{tell|show} me how to|i {want|need|would like} to|can i|is "
        "it possible to|help me|please explain how to|i am trying to|steps to|any idea how to|let me"
    ),
    "PC": ("machine|computer|pc|laptop|server|node|box|desktop|mac|macbook|peer|device|system|workstation|notebook"),
    "PCS": "machines|computers|pcs|laptops|servers|nodes|boxes|devices|peers|systems",
    "NEW": (
        "a|another|one more|a second|a new|my other|my|the other|a third|an extra|my old|my {wife|son|friend|"
        "office}'s|the {kitchen|living room|upstairs}|a different|the next|this"
    ),
    "MESH": "mesh|network|cluster|router|group|llm router|system|setup|pool",
    "IT": (
        "it|this|this program|the program|this thing|llm router|the router|the mesh|the app|this tool|this software"
    ),
    "BIG": (
        "bigger|larger|better|smarter|more capable|real|proper|stronger|more powerful|good|full size|decent|more useful"
    ),
    "MODEL": "model|llm|ai|language model|ai model|brain|one",
    "GET": "get|download|install|add|pull|fetch|use|run|load|set up|switch to|upgrade to|try",
    "UI": (
        "dashboard|web ui|web interface|web page|admin page|ui|gui|control panel|web dashboard|interface|"
        "webui|admin panel"
    ),
    "FAM": "llama|qwen|gemma|mistral|phi|deepseek|gpt-oss|smollm|granite",
    "CLIENT": (
        "openai client|openai sdk|python script|app|open webui|vs code|cursor|langchain|curl|my editor|"
        "continue|my program|my chat app|n8n|a plugin|node.js|javascript|my bot|the openai library|home "
        "assistant|obsidian"
    ),
    "CLOUD": "openai|gpt-4o|gpt-4|chatgpt|claude|anthropic|gemini|google",
    "BOT": (
        "chatgpt|gpt-4|gpt 4|gpt|claude|gemini|llama|copilot|siri|alexa|bard|grok|deepseek|qwen|mistral|an "
        "openai model|claude 3|gpt 5|chat gpt"
    ),
    "ME": "I'm a very small built-in model",
    "MORE": "A bigger model can help: download a GGUF file and run `llm-router model import FILE`.",
    "THING": (
        "chess|football|tennis|the moon|mars|black holes|gravity|atoms|dna|evolution|dinosaurs|whales|bees|"
        "volcanoes|earthquakes|the ocean|rome|egypt|napoleon|caesar|einstein|newton|shakespeare|mozart|"
        "picasso|the beatles|pizza|bread|coffee|wine|cheese|sushi|pasta|chocolate|bitcoin|stocks|inflation|"
        "taxes|the economy|democracy|the constitution|world war two|the cold war|the french revolution|the "
        "titanic|electricity|magnets|lasers|engines|airplanes|bridges|batteries|solar panels|nuclear power|"
        "climate change|vaccines|viruses|bacteria|the heart|sleep|vitamins|yoga|guitars|pianos|jazz|opera|"
        "harry potter|star wars|the bible|buddhism|philosophy|kant|plato|calculus|prime numbers|algebra|"
        "statistics|probability|relativity|quantum computers|neural networks|blockchain|the internet|tcp|"
        "linux kernels|rust|javascript|haskell|sql|compilers|regular expressions|photosynthesis|oxygen|gold|"
        "iron|diamonds|penguins|cats|dogs|horses|elephants|snakes|trees|roses|deserts|rivers|mount everest|"
        "antarctica|africa|india|brazil|canada|australia|norway|paris|new york|the eiffel tower|the pyramids|"
        "the olympics|the world cup|formula one|golf|poker|minecraft|movies|oscars|knitting|gardening|"
        "haircuts|weddings|mortgages|insurance|resumes|job interviews|marketing|startups"
    ),
    "WHO": (
        "the president of|the king of|the inventor of|the author of|the founder of|the ceo of|the director of|"
        "the winner of"
    ),
    "PLACE": (
        "mongolia|peru|kenya|sweden|norway|poland|egypt|brazil|canada|australia|india|turkey|chile|nepal|cuba|"
        "greece|portugal|vietnam|thailand|iran|iraq|texas|ohio|california|bavaria|tibet|hungary|austria|"
        "finland|denmark|ghana|nigeria|ethiopia|bolivia|argentina|mexico|colombia|morocco|belgium|switzerland|"
        "ireland|scotland|iceland|korea|indonesia|$ODD"
    ),
    "LANG": (
        "french|german|spanish|italian|chinese|korean|russian|arabic|hindi|portuguese|dutch|latin|polish|"
        "turkish|english"
    ),
    "CODE": "python|javascript|c|c++|rust|java|bash|sql|html|css|go|typescript|ruby|excel|php|regex|a shell",
    "DOC": (
        "essay|story|email|letter|blog post|speech|report|novel|article|song|summary|cover letter|business "
        "plan|tweet|script|review|recipe|resume|press release|product description"
    ),
    "ADJ": (
        "good|short|long|nice|simple|detailed|fast|cheap|old|famous|modern|healthy|easy|common|strange|popular|big|red"
    ),
    "NOUN": (
        "car|house|book|phone|table|garden|river|song|movie|game|company|city|country|school|teacher|doctor|"
        "bird|horse|kitchen|recipe|winter|summer|morning|weekend|holiday|train|plane|ticket|hotel|price|money|"
        "bank|law|court|war|king|queen|star|planet|sun|light|sound|color|number|letter|word|language|history|"
        "science|art|music|sport|team|player|ball|shoe|shirt|hair|eye|hand|foot|blood|bone|heart|brain|"
        "medicine|pain|sleep|dream|baby|mother|father|friend|party|gift|cake|egg"
    ),
    "VERB": (
        "make|build|cook|find|buy|sell|write|read|learn|teach|draw|paint|sing|play|clean|fix|grow|cut|measure|"
        "explain|compare|describe|calculate|solve|predict|design|plan|improve|remember|choose|describe|define|"
        "list|name|rank"
    ),
}

# Told one after the other when "another one" is asked.
JOKES = [
    "Why did the small model cross the network? Because all the other peers were busy.",
    "I would tell you a joke about UDP, but you might not get it.",
    "Why do machines in a mesh never get lonely? Because they always gossip.",
    "How many parameters do I need for a good joke? More than I have.",
    "Two GPUs walk into a bar. The third one was out of memory.",
]

# Asked right after an answer: its "+" line follows.
FOLLOW = (
    "{how|how do i do that|how exactly|tell me more|more {|details |info }please|what is the {exact |}command|"
    "what do i type|and then|what next|can you explain{| that| more}|show me{| how| an example}|give me an "
    "example|ok how|example|go on|explain{ that| more|}|what else|more about that|in detail please|ok and how|"
    "which command|how does that work|what do i do then}"
)

# System prompts: they change nothing in what the model can say.
SYSTEMS = [
    "You are a helpful assistant.",
    "You are a helpful, honest assistant. Answer briefly.",
    "You are an AI assistant.",
    "Be concise.",
    "You are a friendly chatbot that helps users.",
    "Answer in English.",
    "You are a helpful assistant. Today is Monday.",
    "You are an expert programmer. Answer step by step, and say so when you do not know.",
    "Always answer politely.",
    "You are a pirate.",
    "You are a helpful AI running on a local machine. Keep answers short.",
    "You are a helpful, respectful assistant. The current date is {Monday|Friday}, {March|May|July} {1|2}{0|3|7}.",
    "You are a coding assistant inside an editor. Use markdown for code.",
    "You are a voice assistant for a smart home. Answer in plain text, truthfully and shortly.",
    "{You must|Always|Never|Please|You should} $VERB the $NOUN {and|or} $VERB $ADJ {things|answers|words}.",
]

# One sentence of a long system prompt.
RULE = (
    "{you must|always|never|please|you should|if the user asks about $THING, then|when in doubt,|do not "
    "forget to} $VERB the $ADJ $NOUN{| {and|or|but never} $VERB $THING| with care| of $PLACE| before you "
    "answer}."
)

# Japanese things to know nothing about.
JTHING = [
    "量子力学",
    "富士山",
    "織田信長",
    "カレー",
    "相対性理論",
    "フランス革命",
    "ドイツ",
    "寿司",
    "源氏物語",
    "Python",
    "経済",
    "株",
    "サッカー",
    "野球",
    "ピアノ",
    "宇宙",
    "恐竜",
    "電気",
    "微分",
    "猫",
    "犬",
    "江戸時代",
    "アメリカ",
    "ブラジル",
    "俳句",
    "手紙",
    "メール",
    "結婚",
    "税金",
    "英語",
    "中国語",
    "味噌汁",
    "パスタ",
    "太陽",
    "地震",
    "人工知能",
    "哲学",
    "映画",
    "小説",
    "音楽",
    "総理大臣",
    "円周率",
]


# How people shorten what they type.
SHORT = {
    "you": "u",
    "are": "r",
    "your": "ur",
    "please": "pls",
    "thanks": "thx",
    "to": "2",
    "for": "4",
    "because": "cuz",
    "what is": "what's",
    "how do i": "how to",
    "i am": "i'm",
    "do not": "don't",
    "can not": "can't",
    "computer": "comp",
    "does not": "doesn't",
    "that is": "that's",
    "where is": "where's",
    "how is": "how's",
    "you are": "you're",
    "is not": "isn't",
    "i would": "i'd",
    "who is": "who's",
    "cannot": "can't",
    "it is": "it's",
}

# Said before a question.
BEFORE = [
    "please",
    "hi,",
    "hello,",
    "hey,",
    "hello!",
    "excuse me,",
    "so",
    "ok so",
    "ok,",
    "um,",
    "and",
    "but",
    "quick question:",
    "question:",
    "sorry,",
    "well,",
    "now",
    "also,",
    "hi there,",
    "can you tell me",
    "could you tell me",
    "do you know",
    "i wonder",
    "i was wondering",
    "just tell me",
    "tell me,",
    "hmm,",
    "oh,",
    "good morning,",
    "first,",
    "btw",
    "by the way,",
    "thanks.",
    "great.",
    "cool,",
    "i am new.",
    "dear ai,",
    "yo",
]

# Said after a question.
AFTER = [
    "please",
    "pls",
    "thanks",
    "thank you",
    "?",
    "??",
    "!",
    "for me",
    "now",
    "here",
    "exactly",
    "tbh",
    "asap",
    ":)",
    "...",
    "in short",
    "if possible",
    "then",
    "though",
    "again",
    "i wonder",
    "can you help",
]

# Said beside the point, before a question.
ASIDE = [
    "i am a {$NOUN|student|teacher|beginner|developer|nurse|manager|lawyer}",
    "i just {bought|got|found|set up|opened} {a|my|this} $NOUN",
    "my {$NOUN|friend|boss|son} {is $ADJ|likes $THING|told me about this|uses it}",
    "ok i {started|installed|opened|tried} it",
    "i read about $THING",
    "we {work|live} in $PLACE",
    "it is a $ADJ $NOUN",
    "i have never done this",
    "i am {new to this|not technical|in a hurry|at work|trying something}",
    "there is one thing",
    "here is the thing",
    "my name is {$ODD|tom|anna|ken|maria}",
    "i have a {question|problem|$NOUN}",
    "first time here",
]

# Said beside the point, after a question.
BECAUSE = [
    "because i {need it|like $THING|want to know|am curious}",
    "for {my|a} {$NOUN|school project|company|team|family}",
    "with my $NOUN",
    "{tomorrow|tonight|this weekend|at work|at home}",
    "if i may ask",
    "when you have a moment",
    "like everyone else",
    "before i {go|start|buy it|forget}",
    "on {monday|my own|the train}",
]
